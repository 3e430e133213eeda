"""What entries say of attempts whose body is a container of its own: which one it is, or why there is to be none.

An entry's functions are called here in the leader itself, since no process of ours is in such a pod: in a thread, which
is left alone if it takes too long. What they raise ends the attempt as it would have in a worker.
"""

import asyncio
import logging
import threading
from collections.abc import Awaitable
from concurrent.futures import Future
from typing import NamedTuple

from cronplane_core.attempt_job_repository import PendingAttempt
from cronplane_core.run_states import AttemptEnd, EndedAttempt
from cronplane_entries.core import (
    CronReference,
    ExecutionContext,
    PermanentError,
    PodContainer,
    RunReference,
    Services,
)
from cronplane_entries.entry_settings import NO_SETTINGS, EntrySettings
from cronplane_entries.invocation import (
    VALIDATOR_SECONDS,
    PayloadInvalidError,
    load_execution_payload,
    validate_execution,
)
from cronplane_entries.registry import CronEntrypoint, CronRegistry
from cronplane_operator.worker_protocol import MAXIMUM_MESSAGE_CHARACTERS, ErrorRecord, storable

# Nobody would read it: there is no output of ours with the run.
_LOG = logging.getLogger("cronplane.entry.unread")
_LOG.addHandler(logging.NullHandler())
_LOG.propagate = False


class RefusedBody(NamedTuple):
    """How an attempt ends of which no body is to be made, and what its entry raised."""

    ended: EndedAttempt
    error: ErrorRecord


class ImageEntries:
    """The entries whose attempts are containers. `settings` are the administrator's, of every entry."""

    def __init__(self, *, registry: CronRegistry, settings: EntrySettings) -> None:
        self._registry = registry
        self._settings = settings

    def __contains__(self, entrypoint: str) -> bool:
        """Say whether an entry's attempts are containers."""
        return entrypoint in self._registry and self._registry[CronEntrypoint(entrypoint)].container is not None

    async def body(self, attempt: PendingAttempt) -> PodContainer | RefusedBody:
        """Give the container that is an attempt's body, by the payload and the settings as they are now."""
        try:
            async with asyncio.timeout(VALIDATOR_SECONDS):
                return await asyncio.wrap_future(self._making(attempt))
        except PayloadInvalidError as error:
            what = "The entry does not accept the stored payload; change the cron's payload."
            return _refused("PayloadInvalid", what, error, may_retry=False)
        except (Exception, SystemExit) as error:  # noqa: BLE001 - an entry may raise anything
            what = "The entry's validator refused to run."
            return _refused("ValidatorFailed", what, error, may_retry=not isinstance(error, PermanentError))

    def _making(self, attempt: PendingAttempt) -> Future[PodContainer]:
        """Begin to make a container, in a thread that nobody has to wait for, also not the end of the process."""
        made: Future[PodContainer] = Future()
        made.set_running_or_notify_cancel()

        def make() -> None:
            try:
                made.set_result(self._make(attempt))
            except BaseException as error:  # noqa: BLE001 - whoever waits is told of all
                made.set_exception(error)

        threading.Thread(target=make, name="image-entry", daemon=True).start()
        return made

    def _make(self, attempt: PendingAttempt) -> PodContainer:
        spec = self._registry[CronEntrypoint(attempt.entrypoint)]
        if spec.container is None:
            raise PermanentError(f"The entry {attempt.entrypoint} runs no containers any more")
        payload = load_execution_payload(spec, attempt.payload_json)
        context = self._context(attempt)
        validate_execution(spec, payload=payload, context=context, run_until_complete=_run_until_complete)
        return spec.container(payload, context=context)

    def _context(self, attempt: PendingAttempt) -> ExecutionContext:
        return ExecutionContext(
            cron=CronReference(id=attempt.cron_id, name=attempt.cron_name, organization_id=attempt.organization_id),
            run=RunReference(id=attempt.run_id, trigger=attempt.trigger_kind),
            attempt=attempt.number,
            scheduled_for=attempt.scheduled_for,
            deadline=attempt.deadline,
            log=_LOG,
            services=Services(settings=self._settings.get(attempt.entrypoint, NO_SETTINGS)),
        )


def _refused(reason: str, message: str, error: BaseException, *, may_retry: bool) -> RefusedBody:
    kind = type(error)
    record = ErrorRecord(
        type=f"{kind.__module__}.{kind.__qualname__}",
        message=storable(str(error), longest=MAXIMUM_MESSAGE_CHARACTERS),
        traceback="",
    )
    ended = EndedAttempt(end=AttemptEnd.ERROR, reason=reason, message=message, may_retry=may_retry)
    return RefusedBody(ended=ended, error=record)


def _run_until_complete(awaitable: Awaitable[object]) -> object:
    return asyncio.run(_awaited(awaitable))


async def _awaited(awaitable: Awaitable[object]) -> object:
    return await awaitable
