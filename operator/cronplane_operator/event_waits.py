"""How loops wait: until somebody tells, and in any case not for longer than so many seconds."""

import asyncio


async def any_set_or_elapsed(*events: asyncio.Event, seconds: float) -> None:
    """Return when one of the events is set, or when so many seconds have passed; the events stay as they are."""
    waiting = [asyncio.create_task(event.wait()) for event in events]
    try:
        await asyncio.wait(waiting, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in waiting:
            task.cancel()
