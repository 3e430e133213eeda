"""The runner in a cluster, as a process of its own: beside it go the mirror, the Runner resource, and kopf."""

import asyncio
import os
from collections.abc import Callable, Mapping
from functools import partial

from cronplane_cli.environment import read_settings
from cronplane_cli.errors import CommandError
from cronplane_cli.runner_role import collect_garbage_rarely, run_until_signalled
from cronplane_core.kubernetes_client import KubernetesClient
from cronplane_core.log import configure_logging
from cronplane_core.settings import (
    KubernetesSettings,
    LogSettings,
    PodProfile,
    PodSettings,
    RegistrationSettings,
    RunnerSettings,
)
from cronplane_entries.core import ExecutionMode
from cronplane_entries.entry_settings import EntrySettings, read_entry_settings, read_execution_modes
from cronplane_entries.registration import Registrar
from cronplane_entries.registry import CRON_REGISTRY, CronEntrypoint, load_entries
from cronplane_operator.cron_mirror import CronMirror
from cronplane_operator.cron_resources import CronResources
from cronplane_operator.image_entries import ImageEntries
from cronplane_operator.job_launcher import LaunchState
from cronplane_operator.job_manifest import JobPlace
from cronplane_operator.kopf_watch import KopfWatch, combined
from cronplane_operator.launch_precedence import LaunchPrecedence
from cronplane_operator.leader_extension import LeaderExtension
from cronplane_operator.namespace_organizations import NamespaceOrganizations
from cronplane_operator.pod_extension import PodExtension
from cronplane_operator.resource_registration import ResourceRegistration
from cronplane_operator.run_recorder import RunRecorder
from cronplane_operator.runner import Runner
from cronplane_operator.runner_resource import RunnerResource


def serve() -> None:
    """Run the operator until SIGTERM or SIGINT, then drain."""
    configure_logging(read_settings(LogSettings))
    settings, cluster, pods = (
        read_settings(RunnerSettings),
        read_settings(KubernetesSettings),
        read_settings(PodSettings),
    )
    load_entries()
    registrar = _registrar()
    collect_garbage_rarely()
    asyncio.run(_serve(settings, cluster, pods, registrar))


def _registrar() -> Registrar:
    allowed = read_settings(RegistrationSettings)
    return Registrar(
        registry=CRON_REGISTRY,
        settings=read_entry_settings(os.environ, CRON_REGISTRY),
        minimum_interval=allowed.minimum_interval,
        cron_quota=allowed.cron_quota,
    )


async def _serve(
    settings: RunnerSettings, cluster: KubernetesSettings, pods: PodSettings, registrar: Registrar
) -> None:
    profiles = _pod_profiles(pods, registrar.settings)
    async with KubernetesClient.connected(kubeconfig=cluster.kubeconfig) as client:
        parts = _ClusterParts(cluster=cluster, client=client, registrar=registrar)
        if profiles:
            parts.add_pods(pods, profiles)
        runner = Runner(
            settings=settings,
            registry=CRON_REGISTRY,
            recorder=parts.recorder,
            extensions=parts.extensions,
            in_pods=profiles,
        )
        parts.add_watch_of_crons(runner)
        for watch in parts.watches:
            watch.start()
        try:
            await run_until_signalled(runner, settings=settings, recorder=parts.recorder)
        finally:
            for watch in parts.watches:
                await watch.stop()


class _ClusterParts:
    """What goes on beside the runner in a cluster, put together: each part is told of the others that it needs."""

    def __init__(self, *, cluster: KubernetesSettings, client: KubernetesClient, registrar: Registrar) -> None:
        self._cluster = cluster
        self._client = client
        self._registrar = registrar
        self._launches = LaunchState()
        self._precedence = LaunchPrecedence()
        organizations = NamespaceOrganizations(cluster)
        self._resources = CronResources(client=client, namespaces=organizations.namespaces)
        self._mirror = CronMirror(
            settings=cluster,
            client=client,
            resources=self._resources,
            organizations=organizations,
            refusals=lambda: self._registration.state.refusals,
            precedence=self._precedence,
        )
        self._registration = ResourceRegistration(
            settings=cluster,
            client=client,
            resources=self._resources,
            organizations=organizations,
            registrar=registrar,
            on_refused=self._mirror.refused,
        )
        resource = RunnerResource(
            settings=cluster,
            client=client,
            mirror=lambda: self._mirror.state,
            watch=lambda: combined([watch.state for watch in self.watches]),
            registration=lambda: self._registration.state,
            launches=self._launches,
        )
        self.recorder = RunRecorder(listeners=[self._mirror, resource])
        self.extensions: list[LeaderExtension] = [self._mirror, self._registration, resource]
        self.watches: list[KopfWatch] = []
        self._watching = partial(
            KopfWatch,
            kubeconfig=cluster.kubeconfig,
            on_ended=lambda reason: self.recorder.watch_ended(reason=reason),
        )

    def add_pods(self, pods: PodSettings, profiles: Mapping[str, str]) -> None:
        """Let entries run in pods, each in its profile, and have their Jobs watched."""
        namespace = pods.run_namespace or self._cluster.release_namespace
        in_pods = PodExtension(
            client=self._client,
            settings=pods,
            place=JobPlace(installation=self._cluster.installation, namespace=namespace),
            profiles=profiles,
            images=ImageEntries(registry=CRON_REGISTRY, settings=self._registrar.settings),
            state=self._launches,
            precedence=self._precedence,
        )
        self.extensions.append(in_pods)
        self.watches.append(self._watching(namespaces=[namespace], on_job=in_pods.job_seen))

    def add_watch_of_crons(self, runner: Runner) -> None:
        """Have Crons and namespaces watched, by a kopf that also answers for the runner."""
        self.watches.append(
            self._watching(
                namespaces=self._resources.namespaces,
                on_event=self._mirror.resource_seen,
                on_namespace=self._registration.namespace_seen,
                probes=_probes(runner),
                probe_url=self._cluster.watch_probe_url,
            )
        )


def _probes(runner: Runner) -> dict[str, Callable[[], object]]:
    """Tell how long ago runner and reconciler came round; a runner that stands by reconciles nothing."""
    return {
        "runner": lambda: round(runner.pulse.silence, 1),
        "reconciler": lambda: round(runner.reconciler_pulse.silence, 1) if runner.leading.is_set() else None,
    }


def _pod_profiles(pods: PodSettings, settings: EntrySettings) -> dict[str, str]:
    """Name the profile of each entry that runs in pods: in our image, or as containers if it was set up for that."""
    found: dict[str, str] = {}
    for name, mode in read_execution_modes(os.environ, CRON_REGISTRY).items():
        spec = CRON_REGISTRY[CronEntrypoint(name)]
        is_set_up = pods.run_image is not None if spec.container is None else bool(settings.get(name))
        if mode is ExecutionMode.POD and is_set_up:
            found[name] = spec.pod_profile
            if spec.container is not None:
                _check_profile_of_containers(spec.pod_profile, pods.pod_profiles)
    return found


def _check_profile_of_containers(name: str, profiles: Mapping[str, PodProfile]) -> None:
    profile = profiles.get(name, PodProfile())
    if profile.image or profile.requests or profile.limits:
        raise CommandError(
            f"The profile {name!r} in CRONPLANE_POD_PROFILES is one of containers, and sets image, requests or limits: "
            "image and resources of those come from the payload, as CRONPLANE_ENTRY_… settings allow"
        )
