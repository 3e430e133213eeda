"""Whose token is taken for an attempt's, by a real API server: that of the pod which the noted Job controls."""

import json
from copy import copy
from typing import Any
from uuid import UUID, uuid4

import httpx2
import pytest
from sqlalchemy.ext.asyncio import AsyncEngine

from cronplane_core import attempt_job_repository, run_repository
from cronplane_core.attempt_job_repository import AttemptJob
from cronplane_core.database import transaction

AUDIENCE = "--audience=cronplane"


class Gate:
    """The start of the first attempt of a run."""

    def __init__(self, *, kubectl: Any, installation: Any, engine: AsyncEngine, address: str, run_id: UUID) -> None:
        self.kubectl, self.installation, self.engine, self.run_id = kubectl, installation, engine, run_id
        self.url = f"{address}/runs/{run_id}/attempts/1/start"
        self.here = ("--namespace", installation.runs)

    async def note(self, uid: str) -> None:
        """Note the Job with this UID as the attempt's."""
        job = AttemptJob(
            run_id=self.run_id,
            number=1,
            namespace=self.installation.runs,
            name="attempt",
            uid=uid,
            service_account=f"{self.installation.name}-run",
        )
        async with transaction(self.engine) as connection:
            await attempt_job_repository.keep(connection, jobs=[job])

    def elsewhere(self, namespace: str) -> "Gate":
        """Give what makes Jobs and tokens in another namespace, for the same gate."""
        gate = copy(self)
        gate.here = ("--namespace", namespace)
        return gate

    def make_job(self, name: str, *, account: str) -> tuple[str, str]:
        """Make a Job whose pod never runs; gives the Job's UID and the pod's name."""
        self._create({"apiVersion": "batch/v1", "kind": "Job"}, name, {"template": {"spec": self._pod(account)}})
        selector = f"--selector=batch.kubernetes.io/job-name={name}"
        self.kubectl.wait("create", "pods", selector, *self.here)
        [pod] = self.kubectl.read("pods", selector, *self.here)["items"]
        return str(self.kubectl.read(f"job/{name}", *self.here)["metadata"]["uid"]), str(pod["metadata"]["name"])

    def make_pod(self, name: str, *, account: str) -> None:
        """Make a pod that nothing controls, and that never runs."""
        self._create({"apiVersion": "v1", "kind": "Pod"}, name, self._pod(account))

    def _create(self, kind: dict[str, str], name: str, spec: dict[str, Any]) -> None:
        body = {**kind, "metadata": {"name": name}, "spec": spec}
        self.kubectl("create", "--filename", "-", *self.here, given=json.dumps(body))

    def _pod(self, account: str) -> dict[str, Any]:
        security = {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}, "runAsNonRoot": True}
        return {
            "restartPolicy": "Never",
            "serviceAccountName": account,
            "containers": [{"name": "attempt", "image": "localhost/nothing:none", "securityContext": security}],
            "securityContext": {"seccompProfile": {"type": "RuntimeDefault"}},
        }

    def token(self, account: str, *options: str) -> str:
        return str(self.kubectl("create", "token", account, *self.here, *options)).strip()

    def token_of_pod(self, name: str, account: str, *options: str) -> str:
        return self.token(account, "--bound-object-kind=Pod", f"--bound-object-name={name}", *options)

    async def ask(self, token: str) -> int:
        async with httpx2.AsyncClient() as client:
            answer = await client.post(
                self.url,
                headers={"Authorization": f"Bearer {token}"},
                json={"nonce": str(uuid4()), "location": "a pod"},
            )
        return int(answer.status_code)


@pytest.fixture
async def gate(*, kubectl: Any, installation: Any, engine: AsyncEngine, add_cron: Any, start_process: Any) -> Gate:
    cron = await add_cron(entrypoint="in_a_pod", payload={}, enabled=False)
    async with transaction(engine) as connection:
        run = await run_repository.insert_manual_run(connection, cron=cron, created_by="test", execution_payload=None)
    token_keys = f"test:{uuid4().hex}{uuid4().hex}"
    api = start_process("api", pod_attempts=True, kubeconfig=installation.api_kubeconfig, token_keys=token_keys)
    return Gate(kubectl=kubectl, installation=installation, engine=engine, address=api.address, run_id=run.id)


async def test_only_the_pod_that_the_noted_job_controls_is_the_attempt(gate: Any, installation: Any) -> None:
    account = f"{installation.name}-run"
    uid, pod = gate.make_job("attempt", account=account)
    _, another = gate.make_job("another", account=account)
    gate.make_pod("alone", account=account)
    right = gate.token_of_pod(pod, account, AUDIENCE)
    assert await gate.ask(right) == 503, "the Job is not noted yet"
    await gate.note(uid)
    refused = {
        "of a pod of another Job": gate.token_of_pod(another, account, AUDIENCE),
        "of a pod that nothing controls": gate.token_of_pod("alone", account, AUDIENCE),
        "of another account": gate.token("default", AUDIENCE),
        "of no pod": gate.token(account, AUDIENCE),
        "for another audience": gate.token_of_pod(pod, account, "--audience=somebody"),
        "for Kubernetes": gate.token_of_pod(pod, account),
        "of nobody": "nonsense",
    }
    assert {whose: await gate.ask(token) for whose, token in refused.items()} == dict.fromkeys(refused, 401)
    assert await gate.ask(right) == 200


async def test_a_pod_in_a_tenants_namespace_with_an_account_of_the_same_name_is_refused(
    gate: Any, installation: Any, kubectl: Any
) -> None:
    account = f"{installation.name}-run"
    uid, _ = gate.make_job("attempt", account=account)
    await gate.note(uid)
    tenants = gate.elsewhere(installation.tenant)
    kubectl("create", "serviceaccount", account, *tenants.here)
    # Of the name, the Job's name and the labels that the right one has.
    _, pod = tenants.make_job("attempt", account=account)
    assert await gate.ask(tenants.token_of_pod(pod, account, AUDIENCE)) == 401


async def test_the_token_of_a_deleted_pod_is_worthless(gate: Any, installation: Any, kubectl: Any) -> None:
    account = f"{installation.name}-run"
    uid, pod = gate.make_job("attempt", account=account)
    await gate.note(uid)
    token = gate.token_of_pod(pod, account, AUDIENCE)
    kubectl("delete", f"pod/{pod}", "--now", *gate.here)
    assert await gate.ask(token) == 401
