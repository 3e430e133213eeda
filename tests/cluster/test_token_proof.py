"""Whose token is taken for an attempt's, by a real API server: that of the pod which the noted Job controls."""

import json
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

    def make_job(self, name: str) -> str:
        """Make a suspended Job, which makes no pod; gives its UID."""
        self.kubectl("create", "job", name, "--image=localhost/nothing:none", *self.here)
        self.kubectl("patch", f"job/{name}", *self.here, "--type=merge", "--patch", '{"spec":{"suspend":true}}')
        return str(self.kubectl.read(f"job/{name}", *self.here)["metadata"]["uid"])

    def make_pod(self, name: str, *, controller: tuple[str, str] | None, account: str) -> None:
        """Make a pod that never runs."""
        owner = {"apiVersion": "batch/v1", "kind": "Job", "controller": True}
        owners = [] if controller is None else [owner | {"name": controller[0], "uid": controller[1]}]
        security = {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}, "runAsNonRoot": True}
        container = {"name": "attempt", "image": "localhost/nothing:none", "securityContext": security}
        spec = {
            "serviceAccountName": account,
            "containers": [container],
            "securityContext": {"seccompProfile": {"type": "RuntimeDefault"}},
        }
        metadata = {"name": name, "namespace": self.installation.runs, "ownerReferences": owners}
        body = {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec}
        self.kubectl("create", "--filename", "-", given=json.dumps(body))

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
    uid, other = gate.make_job("attempt"), gate.make_job("another")
    gate.make_pod("right", controller=("attempt", uid), account=account)
    gate.make_pod("another", controller=("another", other), account=account)
    gate.make_pod("alone", controller=None, account=account)
    gate.make_pod("default", controller=("attempt", uid), account="default")
    right = gate.token_of_pod("right", account, AUDIENCE)
    assert await gate.ask(right) == 503, "the Job is not noted yet"
    await gate.note(uid)
    refused = {
        "of a pod of another Job": gate.token_of_pod("another", account, AUDIENCE),
        "of a pod that nothing controls": gate.token_of_pod("alone", account, AUDIENCE),
        "of another account": gate.token_of_pod("default", "default", AUDIENCE),
        "of no pod": gate.token(account, AUDIENCE),
        "for another audience": gate.token_of_pod("right", account, "--audience=somebody"),
        "for Kubernetes": gate.token_of_pod("right", account),
        "of nobody": "nonsense",
    }
    assert {whose: await gate.ask(token) for whose, token in refused.items()} == dict.fromkeys(refused, 401)
    assert await gate.ask(right) == 200


async def test_the_token_of_a_deleted_pod_is_worthless(gate: Any, installation: Any, kubectl: Any) -> None:
    account = f"{installation.name}-run"
    uid = gate.make_job("attempt")
    gate.make_pod("right", controller=("attempt", uid), account=account)
    await gate.note(uid)
    token = gate.token_of_pod("right", account, AUDIENCE)
    kubectl("delete", "pod/right", "--now", *gate.here)
    assert await gate.ask(token) == 401
