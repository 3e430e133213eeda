"""The leader's check of the whole record: the same as `cronplane check`, in a process of its own.

Recomputing a long record keeps a processor busy for seconds at a stretch. In the leader's own process, be it in another
thread, fires would be late by that. The child has the lowest priority, is the first to go where memory is short, is
given the database's address by a pipe, since arguments can be read by everybody, and ends with its parent. It changes
nothing.
"""

import asyncio
import os
import sys
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from threading import Thread
from types import TracebackType

from pydantic import BaseModel, ConfigDict, ValidationError
from sqlalchemy import URL

from cronplane_core.account import Violation, ViolationKind
from cronplane_core.account_repository import Grace, find_violations
from cronplane_core.database import create_engine, parse_url
from cronplane_core.errors import CronplaneError
from cronplane_operator.errors import RunnerError

# Of each kind: enough to find the damage by, few enough for a log.
_EXAMPLES = 3
_LOWEST_PRIORITY = 19
# The first to be killed when memory is short (proc(5), oom_score_adj).
_MOST_EXPENDABLE = "1000"


class ScanError(RunnerError):
    """The scan could not be made, and nothing is known of the record; it is tried again in its turn."""


class ScanReport(BaseModel):
    """How many violations of each kind there are, the first few of it in words, and the seconds that it took."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    counts: Mapping[ViolationKind, int]
    examples: Mapping[ViolationKind, Sequence[str]]
    seconds: float


async def scan(url: URL) -> ScanReport:
    """Check the record of every cron.

    Raises:
        ScanError: PostgreSQL was not there, or the child could not do it; the message says what is known.

    """
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-P",
        "-m",
        "cronplane_operator.account_scan",
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        return await _ask(process, url.render_as_string(hide_password=False))
    finally:
        with suppress(ProcessLookupError):
            process.kill()
        await process.wait()


async def _ask(process: asyncio.subprocess.Process, address: str) -> ScanReport:
    assert process.stdin is not None  # noqa: S101 - told to mypy; both are pipes
    assert process.stdout is not None  # noqa: S101
    # Its input stays open until it has answered: its end tells the child that we are gone.
    process.stdin.write(address.encode() + b"\n")
    answer = await process.stdout.read()
    try:
        return ScanReport.model_validate_json(answer)
    except ValidationError as error:
        reason = answer.decode(errors="replace") or "the process that scans ended before it was done"
        raise ScanError(reason) from error


def main() -> None:
    """Be the child: read an address from standard input, and write a report, or what went wrong, to standard output."""
    sys.excepthook = _tell
    os.nice(_LOWEST_PRIORITY)
    Path("/proc/self/oom_score_adj").write_text(_MOST_EXPENDABLE, encoding="ascii")
    address = sys.stdin.readline().strip()
    Thread(target=_end_with_parent, daemon=True).start()
    sys.stdout.write(asyncio.run(_scan_here(parse_url(address))).model_dump_json())


def _tell(kind: type[BaseException], error: BaseException, _: TracebackType | None) -> None:
    """Say what ended the child; a foreign error's words may hold what nobody is to read."""
    sys.stdout.write(str(error) if isinstance(error, CronplaneError) else f"{kind.__module__}.{kind.__qualname__}")


def _end_with_parent() -> None:
    sys.stdin.read()
    os._exit(1)


async def _scan_here(url: URL) -> ScanReport:
    started = time.monotonic()
    counts: dict[ViolationKind, int] = defaultdict(int)
    examples: dict[ViolationKind, list[str]] = defaultdict(list)
    engine = create_engine(url, pool_size=1, application_name="cronplane-scan")
    try:
        async for violation in find_violations(engine, grace=Grace()):
            counts[violation.kind] += 1
            if len(examples[violation.kind]) < _EXAMPLES:
                examples[violation.kind].append(_words(violation))
    finally:
        await engine.dispose()
    return ScanReport(counts=counts, examples=examples, seconds=time.monotonic() - started)


def _words(violation: Violation) -> str:
    return f"cron {violation.cron_id} at {violation.at.isoformat()}: {violation.message}"


if __name__ == "__main__":
    main()
