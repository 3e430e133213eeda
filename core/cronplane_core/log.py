"""How every process of Cronplane logs: one structured line per event on standard error, as JSON or for people.

A traceback shows where something failed and of what type, but neither local variables nor the words of a foreign error:
either may hold a payload or a secret (PostgreSQL repeats a row, pydantic an input).
"""

import logging
import sys
import traceback
from collections.abc import Iterator
from types import TracebackType

import structlog

from cronplane_core.errors import CronplaneError
from cronplane_core.settings import LogFormat, LogSettings


def configure_logging(settings: LogSettings) -> None:
    """Send structlog's events and the libraries' warnings to standard error in the chosen format."""
    level = logging.getLevelNamesMapping()[settings.log_level.upper()]
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_logger_name,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *shared,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler()
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(foreign_pre_chain=shared, processors=_rendering(settings.log_format))
    )
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    for name in ("cronplane", "uvicorn.error"):
        logging.getLogger(name).setLevel(level)


def _rendering(log_format: LogFormat) -> list[structlog.typing.Processor]:
    remove_meta = structlog.stdlib.ProcessorFormatter.remove_processors_meta
    render_exception = structlog.processors.ExceptionRenderer(_traceback_text)
    if log_format is LogFormat.CONSOLE:
        return [
            remove_meta,
            render_exception,
            structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty(), pad_event_to=24),
        ]
    return [remove_meta, render_exception, structlog.processors.JSONRenderer()]


_ExceptionInfo = tuple[type[BaseException], BaseException, TracebackType | None]


def _traceback_text(exc_info: _ExceptionInfo) -> str:
    return "".join(_lines(exc_info[1], seen=set())).rstrip()


def _lines(error: BaseException, *, seen: set[int]) -> Iterator[str]:
    """Write a traceback with its causes and the members of groups, as Python does, but without foreign words."""
    seen.add(id(error))
    origin = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    if origin is not None and id(origin) not in seen:
        yield from _lines(origin, seen=seen)
        yield "\nwhich led to:\n\n" if error.__cause__ is None else "\nwhich was the cause of:\n\n"
    yield from traceback.format_tb(error.__traceback__)
    kind = f"{type(error).__module__}.{type(error).__qualname__}"
    yield f"{kind}: {error}\n" if isinstance(error, CronplaneError) else f"{kind}\n"
    for member in getattr(error, "exceptions", ()):
        if isinstance(member, BaseException) and id(member) not in seen:
            yield from _lines(member, seen=seen)
