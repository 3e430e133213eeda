"""Attempts in pods, beside the runner: the launcher makes their Jobs, the observer looks what becomes of them."""

import asyncio
from collections.abc import Coroutine, Mapping, Sequence

from cronplane_core.kubernetes_client import KubernetesClient
from cronplane_core.settings import PodSettings
from cronplane_operator.image_entries import ImageEntries
from cronplane_operator.image_gate import ImageGate
from cronplane_operator.job_launcher import JobLauncher, LaunchState
from cronplane_operator.job_manifest import JobPlace
from cronplane_operator.job_observer import JobObserver
from cronplane_operator.launch_precedence import LaunchPrecedence
from cronplane_operator.leader_extension import TermContext


class PodExtension:
    """Lets a leader run attempts in pods. `profiles` names the pod profile of each entry that runs in them.

    `state` is kept up to date with how launching goes, and `precedence` is held meanwhile.
    """

    def __init__(
        self,
        *,
        client: KubernetesClient,
        settings: PodSettings,
        place: JobPlace,
        profiles: Mapping[str, str],
        images: ImageEntries,
        state: LaunchState,
        precedence: LaunchPrecedence,
    ) -> None:
        self._client = client
        self._settings = settings
        self._place = place
        self._profiles = profiles
        self._images = images
        self._wake = asyncio.Event()
        self._state = state
        self._precedence = precedence

    def job_seen(self) -> None:
        """Learn that something has happened to a Job."""
        self._wake.set()

    def loops(self, term: TermContext) -> Sequence[Coroutine[None, None, None]]:
        """Give what launches and what observes."""
        launcher = JobLauncher(
            term=term,
            client=self._client,
            settings=self._settings,
            place=self._place,
            profiles=self._profiles,
            images=self._images,
            state=self._state,
            precedence=self._precedence,
            on_launched=self._wake.set,
        )
        observer = JobObserver(
            term=term,
            client=self._client,
            settings=self._settings,
            place=self._place,
            gate=ImageGate(term=term, client=self._client, entries=self._images),
            precedence=self._precedence,
            wake=self._wake,
        )
        return launcher.run(), observer.run()
