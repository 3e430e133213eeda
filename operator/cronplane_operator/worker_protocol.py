"""What the runner and its workers say to each other: tasks one way, outcomes the other, as JSON in bounded messages.

A worker runs other people's code, so nothing that it says is unpickled, and it is checked before it is believed.
"""

import fcntl
import mmap
import os
from collections.abc import Iterator
from dataclasses import dataclass, fields
from datetime import datetime
from uuid import UUID

import orjson

from cronplane_operator.errors import RunnerError

MAXIMUM_OUTPUT_BYTES = 64 * 1024
MAXIMUM_MESSAGE_CHARACTERS = 4 * 1024
MAXIMUM_TRACEBACK_CHARACTERS = 16 * 1024
# A result and an output at their bounds, with every character escaped.
MAXIMUM_FRAME_BYTES = 1024 * 1024
# A task is one packet of a Unix socket, and a default kernel takes no packet larger than this.
MAXIMUM_TASK_BYTES = 200 * 1024
# With this code a worker ends that cannot tell an outcome any more.
CHANNEL_CLOSED_EXIT = 121
# Seconds; whoever asks for more gets this.
LONGEST_DELAY = 7 * 86_400.0
_LENGTH_BYTES = 4
_TRUNCATED = "\n… (the rest of the output is cut off)\n"


class WorkerProtocolError(RunnerError):
    """A worker said something that is no outcome; it is not to be trusted any further."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """An attempt to run. Instants are aware and in UTC; `timeout` is in seconds of the database's time."""

    attempt_id: UUID
    entrypoint: str
    payload_json: str
    cron_id: UUID
    cron_name: str
    organization_id: UUID
    run_id: UUID
    trigger: str
    attempt: int
    scheduled_for: datetime
    deadline: datetime
    timeout: float
    callback_token: str | None = None
    callback_deadline: datetime | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ErrorRecord:
    """What an entry raised: the qualified name of its class, its message, and where; never a payload."""

    type: str
    message: str
    traceback: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """How an attempt ended: `status` is one of `AttemptEnd`; `result_json` is JSON text.

    `retry_after`, in seconds, is what the entry asked for, if it did.
    """

    attempt_id: UUID
    status: str
    reason: str
    message: str
    result_json: str | None = None
    error: ErrorRecord | None = None
    output: str = ""
    may_retry: bool = True
    retry_after: float | None = None


_HEADER = tuple(each.name for each in fields(Task) if each.name != "payload_json")


def encode_task(task: Task) -> bytes:
    """Write a task as a line of JSON, then its payload as it is: quoted, it could be twice as long."""
    return orjson.dumps({name: getattr(task, name) for name in _HEADER}) + b"\n" + task.payload_json.encode()


def decode_task(message: bytes | bytearray) -> Task:
    """Read a task; it comes from the runner, and is believed."""
    line, _, payload = message.partition(b"\n")
    header = orjson.loads(line)
    return Task(
        **{
            **header,
            "payload_json": payload.decode(),
            "attempt_id": UUID(header["attempt_id"]),
            "cron_id": UUID(header["cron_id"]),
            "organization_id": UUID(header["organization_id"]),
            "run_id": UUID(header["run_id"]),
            "scheduled_for": datetime.fromisoformat(header["scheduled_for"]),
            "deadline": datetime.fromisoformat(header["deadline"]),
            "callback_deadline": None
            if header["callback_deadline"] is None
            else datetime.fromisoformat(header["callback_deadline"]),
        }
    )


def encode_outcome(outcome: Outcome) -> bytes:
    """Write an outcome as one frame: its length in four bytes, then JSON."""
    body = orjson.dumps(outcome)
    return len(body).to_bytes(_LENGTH_BYTES, "big") + body


class OutcomeReader:
    """Puts frames together from whatever pieces arrive."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> Iterator[Outcome]:
        """Take in what arrived and give the outcomes that are whole, one by one: those before a bad one still count.

        Raises:
            WorkerProtocolError: this is not what a worker of ours sends.

        """
        self._buffer += data
        start = 0
        while len(self._buffer) - start >= _LENGTH_BYTES:
            length = int.from_bytes(self._buffer[start : start + _LENGTH_BYTES], "big")
            if length > MAXIMUM_FRAME_BYTES:
                raise WorkerProtocolError(f"a frame of {length} bytes is too long")
            end = start + _LENGTH_BYTES + length
            if len(self._buffer) < end:
                break
            yield _decode_outcome(self._buffer[start + _LENGTH_BYTES : end])
            start = end
        del self._buffer[:start]


def _decode_outcome(body: bytearray) -> Outcome:
    try:
        fields = orjson.loads(body)
        error = fields["error"]
        outcome = Outcome(
            attempt_id=UUID(fields["attempt_id"]),
            status=_text(fields["status"], 16),
            reason=_text(fields["reason"], 64),
            message=_text(fields["message"], MAXIMUM_MESSAGE_CHARACTERS),
            result_json=None if fields["result_json"] is None else _text(fields["result_json"], MAXIMUM_FRAME_BYTES),
            error=None if error is None else _error(error),
            output=_text(fields["output"], MAXIMUM_OUTPUT_BYTES + len(_TRUNCATED)),
            may_retry=bool(fields["may_retry"]),
            retry_after=None if fields["retry_after"] is None else _delay(fields["retry_after"]),
        )
    except (orjson.JSONDecodeError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise WorkerProtocolError("a message is no outcome") from error
    if outcome.status not in {"completed", "accepted", "error"}:
        raise WorkerProtocolError(f"a worker cannot say that an attempt is {outcome.status}")
    return outcome


def _error(fields: dict[str, object]) -> ErrorRecord:
    return ErrorRecord(
        type=_text(fields["type"], 512),
        message=_text(fields["message"], MAXIMUM_MESSAGE_CHARACTERS),
        traceback=_text(fields["traceback"], MAXIMUM_TRACEBACK_CHARACTERS),
    )


def _delay(value: object) -> float:
    if not isinstance(value, int | float) or not 0 <= value <= LONGEST_DELAY:
        raise TypeError("no delay")
    return value


def _text(value: object, longest: int) -> str:
    if not isinstance(value, str) or len(value) > longest or "\0" in value:
        raise TypeError("not a text, too long, or nothing that PostgreSQL could hold")
    return value


def storable(text: str, *, longest: int) -> str:
    """Make a text that PostgreSQL can hold of whatever an entry wrote, at most `longest` characters."""
    return text[:longest].replace("\0", "\ufffd").encode("utf-8", "replace").decode("utf-8")


class SharedOutput:
    """Memory that a worker writes its output to, and that the runner can read even when the worker is dead.

    It begins with the number of bytes written so far; what does not fit is counted and not kept. Its size is sealed:
    reading memory that a worker had cut off would end the runner.
    """

    _HEADER_BYTES = 8
    SIZE = _HEADER_BYTES + MAXIMUM_OUTPUT_BYTES

    def __init__(self, descriptor: int) -> None:
        self._memory = mmap.mmap(descriptor, self.SIZE)

    @classmethod
    def allocate(cls) -> int:
        """Make such memory and give its descriptor, which the caller closes."""
        descriptor = os.memfd_create("cronplane-output", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        os.ftruncate(descriptor, cls.SIZE)
        fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
        return descriptor

    def clear(self) -> None:
        """Forget what was written."""
        self._memory[: self._HEADER_BYTES] = bytes(self._HEADER_BYTES)

    def append(self, data: bytes) -> None:
        """Write as much of `data` as there is room for."""
        written = self._written()
        room = max(MAXIMUM_OUTPUT_BYTES - written, 0)
        kept = data[:room]
        start = self._HEADER_BYTES + min(written, MAXIMUM_OUTPUT_BYTES)
        self._memory[start : start + len(kept)] = kept
        self._memory[: self._HEADER_BYTES] = (written + len(data)).to_bytes(self._HEADER_BYTES, "big")

    def read(self) -> str:
        """Give what was written, with a mark if some did not fit."""
        written = self._written()
        if not written:
            return ""
        kept = self._memory[self._HEADER_BYTES : self._HEADER_BYTES + min(written, MAXIMUM_OUTPUT_BYTES)]
        text = kept.decode("utf-8", "ignore").replace("\0", "\ufffd")
        return text if written <= MAXIMUM_OUTPUT_BYTES else text + _TRUNCATED

    def close(self) -> None:
        """Give the memory back."""
        self._memory.close()

    def _written(self) -> int:
        return int.from_bytes(self._memory[: self._HEADER_BYTES], "big")
