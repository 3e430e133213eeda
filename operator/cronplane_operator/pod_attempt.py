"""One attempt in a pod: passes the start gate, runs the entry in a worker, sends heartbeats, tells the end.

It is the pool that runs entries in the runner, with one worker, so that an entry behaves alike in both places. It knows
no database and holds no right: everything goes through the API, with a token that is read again for each request.
"""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from http import HTTPStatus
from pathlib import Path
from uuid import UUID, uuid4

import aiohttp
import orjson

from cronplane_core import failpoints
from cronplane_core.failpoints import Failpoint
from cronplane_core.kubernetes_client import Body
from cronplane_entries.entry_settings import EntrySettings
from cronplane_operator.errors import RunnerError
from cronplane_operator.pod_outcome import ExitCode
from cronplane_operator.worker_pool import WorkerPool
from cronplane_operator.worker_protocol import Outcome, Task

# Seconds.
_BEAT_PAUSE = 10.0
_RETRY_PAUSE = 1.0
# How long the API may be away before the attempt began, and after it ended.
_GATE_PATIENCE = 300.0
_FINISH_PATIENCE = 300.0
# An executor that is cancelled has this long to clean up, and no more than a tenth of its time at the deadline.
CANCEL_GRACE = 15.0
_DEADLINE_GRACE = 5.0
_DEADLINE_SHARE = 0.1


class AttemptRefusedError(RunnerError):
    """The API does not let this process do what it asked: the attempt is over, or another one's."""


class ApiUnavailableError(RunnerError):
    """The API does not answer, or says that it cannot at the moment."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AttemptPlace:
    """Which attempt this process is, where it runs, and how it reaches the API."""

    api_url: str
    run_id: UUID
    number: int
    token_file: Path
    location: str


class AttemptApi:
    """The routes of one attempt. Every method raises `AttemptRefusedError` or `ApiUnavailableError`."""

    def __init__(self, place: AttemptPlace, session: aiohttp.ClientSession) -> None:
        self._place = place
        self._session = session
        self._nonce = str(uuid4())
        self._token: str | None = None

    async def start(self) -> Body:
        """Pass the gate."""
        failpoints.reach(Failpoint.ATTEMPT_START)
        started = await self._post("start", {"location": self._place.location[:200]})
        failpoints.reach(Failpoint.ATTEMPT_STARTED)
        return started

    async def beat(self) -> Body:
        """Say that the attempt goes on."""
        return await self._post("heartbeat", {})

    async def finish(self, outcome: Outcome) -> Body:
        """Tell the end."""
        told: Body = {
            "outcome": outcome.status,
            "reason": outcome.reason,
            "message": outcome.message,
            "output": outcome.output,
            "may_retry": outcome.may_retry,
            "retry_after": None if outcome.retry_after is None else round(outcome.retry_after),
        }
        if outcome.result_json is not None:
            told["result"] = orjson.loads(outcome.result_json)
        if outcome.error is not None:
            told["error"] = orjson.loads(orjson.dumps(outcome.error))
        failpoints.reach(Failpoint.ATTEMPT_FINISH)
        finished = await self._post("finish", told)
        failpoints.reach(Failpoint.ATTEMPT_FINISHED)
        return finished

    async def _post(self, what: str, body: Body) -> Body:
        url = f"{self._place.api_url.rstrip('/')}/runs/{self._place.run_id}/attempts/{self._place.number}/{what}"
        headers = {"Authorization": f"Bearer {self._credential()}", "Content-Type": "application/json"}
        data = orjson.dumps({**body, "nonce": self._nonce})
        try:
            async with self._session.post(url, data=data, headers=headers) as answer:
                told = await answer.read()
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise ApiUnavailableError(f"The API does not answer: {type(error).__name__}") from error
        if answer.status != HTTPStatus.OK:
            raise _refusal(answer.status, told)
        read: Body = orjson.loads(told)
        self._token = read.get("token") or self._token
        return read

    def _credential(self) -> str:
        """Give the token that the API renewed, or else the one in the file, which the kubelet renews."""
        if self._token is not None:
            return self._token
        try:
            return self._place.token_file.read_text(encoding="ascii").strip()
        except OSError as error:
            raise ApiUnavailableError(f"The token cannot be read: {error.strerror}") from error


class PodAttempt:
    """Runs the attempt of one process. `tell` is given a line for the pod's log now and then."""

    def __init__(self, *, api: AttemptApi, settings: EntrySettings, tell: Callable[[str], None]) -> None:
        self._api = api
        self._tell = tell
        self._outcome: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
        self._attempt_id = uuid4()
        # Why the executor is being cancelled: what its outcome is then.
        self._verdict: Outcome | None = None
        self._is_told_to_end = False
        self._pool = WorkerPool(
            workers=1,
            max_workers=1,
            memory=0,
            real_seconds=lambda seconds: seconds,
            on_outcomes=self._on_outcomes,
            on_appetite=lambda: None,
            on_trouble=tell,
            settings=settings,
            echoes=True,
        )

    def terminate(self) -> None:
        """End soon: the pod is being taken away (SIGTERM)."""
        self._is_told_to_end = True
        self._cancel(self._terminated())

    async def run(self) -> ExitCode:
        """Run it, from the gate to the end."""
        await self._pool.start()
        try:
            started = await self._pass_gate()
            if started is None:
                return ExitCode.NOT_OURS
            return await self._execute(started)
        finally:
            await self._pool.stop()

    async def _pass_gate(self) -> Body | None:
        try:
            async with asyncio.timeout(_GATE_PATIENCE):
                while not self._is_told_to_end:
                    try:
                        return await self._api.start()
                    except ApiUnavailableError as error:
                        self._tell(f"The attempt waits to begin. {error}")
                        await asyncio.sleep(_RETRY_PAUSE)
        except TimeoutError:
            self._tell("The attempt has not begun, since the API was away for too long.")
        except AttemptRefusedError as error:
            self._tell(f"The attempt does not begin. {error}")
        return None

    async def _execute(self, started: Body) -> ExitCode:
        if self._is_told_to_end:
            return await self._finish(self._terminated())
        loop = asyncio.get_running_loop()
        task = _task(started, attempt_id=self._attempt_id)
        grace = min(_DEADLINE_GRACE, task.timeout * _DEADLINE_SHARE)
        at_deadline = loop.call_later(
            task.timeout - grace, self._cancel, self._ended("timed_out", "AttemptTimeout", _TOO_LATE)
        )
        beats = asyncio.create_task(self._beat(lease=started["lease"]))
        self._pool.submit([task])
        try:
            outcome = await self._outcome
        finally:
            at_deadline.cancel()
            beats.cancel()
        return await self._finish(outcome)

    async def _beat(self, *, lease: float) -> None:
        """Say that it goes on; end the executor if it should not, or if nobody knows for as long as the lease lasts."""
        loop = asyncio.get_running_loop()
        heard = loop.time()
        while True:
            await asyncio.sleep(_BEAT_PAUSE)
            asked = loop.time()
            try:
                goes_on = await self._api.beat()
            except ApiUnavailableError as error:
                self._tell(f"No heartbeat. {error}")
                if asked - heard > lease:
                    return self._kill("LeaseLost", "The API was away for so long that the attempt counts as lost.")
            except AttemptRefusedError as error:
                return self._kill("Superseded", f"The attempt is over. {error}")
            else:
                heard = asked
                if goes_on["is_cancel_requested"]:
                    self._cancel(self._ended("cancelled", "CancelRequested", "Somebody cancelled the run."))

    def _cancel(self, verdict: Outcome) -> None:
        """Let the executor clean up, and end it if that takes long; who asked first says what came of it."""
        if self._verdict is not None:
            return
        self._verdict = verdict
        self._pool.interrupt(self._attempt_id)
        asyncio.get_running_loop().call_later(CANCEL_GRACE, self._pool.cancel, [self._attempt_id])

    def _kill(self, reason: str, message: str) -> None:
        self._verdict = self._ended("lost", reason, message)
        self._pool.cancel([self._attempt_id])

    def _on_outcomes(self, outcomes: Sequence[Outcome]) -> None:
        for outcome in outcomes:
            if not self._outcome.done():
                self._outcome.set_result(self._judged(outcome))

    def _judged(self, outcome: Outcome) -> Outcome:
        """Give what came of an executor: its own end if it got there, else why it was cancelled."""
        if self._verdict is None or outcome.status in {"completed", "accepted"}:
            return outcome
        ended = {name: getattr(self._verdict, name) for name in ("status", "reason", "message")}
        return Outcome(attempt_id=outcome.attempt_id, output=outcome.output, **ended)

    async def _finish(self, outcome: Outcome) -> ExitCode:
        code = ExitCode.DONE if outcome.status in {"completed", "accepted"} else ExitCode.FAILED
        try:
            async with asyncio.timeout(_FINISH_PATIENCE):
                while True:
                    try:
                        await self._api.finish(outcome)
                    except ApiUnavailableError as error:
                        self._tell(f"The end cannot be told yet. {error}")
                        await asyncio.sleep(_RETRY_PAUSE)
                    else:
                        return code
        except AttemptRefusedError as error:
            self._tell(f"The end is not taken. {error}")
            return ExitCode.NOT_OURS
        except TimeoutError:
            return code if code is ExitCode.DONE else ExitCode.UNTOLD

    def _terminated(self) -> Outcome:
        return self._ended("lost", "PodTerminated", "Its pod was told to end before the entry had ended.")

    def _ended(self, status: str, reason: str, message: str) -> Outcome:
        return Outcome(attempt_id=self._attempt_id, status=status, reason=reason, message=message)


_TOO_LATE = "The entry was still running shortly before its deadline, and was cancelled; give it a longer timeout."


def _task(started: Body, *, attempt_id: UUID) -> Task:
    callback = started["callback"]
    deadline, begun = datetime.fromisoformat(started["deadline"]), datetime.fromisoformat(started["started_at"])
    return Task(
        attempt_id=attempt_id,
        entrypoint=started["entrypoint"],
        payload_json=orjson.dumps(started["payload"]).decode(),
        cron_id=UUID(started["cron_id"]),
        cron_name=started["cron_name"],
        organization_id=UUID(started["organization_id"]),
        run_id=UUID(started["run_id"]),
        trigger=started["trigger"],
        attempt=started["attempt"],
        scheduled_for=datetime.fromisoformat(started["scheduled_for"]),
        deadline=deadline,
        timeout=(deadline - begun).total_seconds(),
        callback_token=None if callback is None else callback["token"],
        callback_deadline=None if callback is None else datetime.fromisoformat(callback["deadline"]),
    )


def _refusal(status: int, told: bytes) -> RunnerError:
    """Say what an answer means: no, or not now."""
    try:
        detail = str(orjson.loads(told).get("detail") or "")
    except (orjson.JSONDecodeError, AttributeError):
        detail = ""
    message = f"The API answered {status}. {detail}"
    is_temporary = status >= HTTPStatus.INTERNAL_SERVER_ERROR or status == HTTPStatus.TOO_MANY_REQUESTS
    return ApiUnavailableError(message) if is_temporary else AttemptRefusedError(message)
