"""Whether a loop of the runner still comes round, for those who ask from another thread."""

import time
from collections.abc import Callable

# Seconds: nothing that the loop does takes nearly as long, unless it hangs.
_LONGEST_SILENCE = 30.0


class Pulse:
    """Beaten by the loop about once a second."""

    def __init__(self, *, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._monotonic = monotonic
        self._last = monotonic()

    def beat(self) -> None:
        """Show that the loop has come round."""
        self._last = self._monotonic()

    @property
    def silence(self) -> float:
        """Give the seconds since it came round last."""
        return self._monotonic() - self._last

    @property
    def is_alive(self) -> bool:
        """Tell whether it has come round in the last half minute."""
        return self.silence <= _LONGEST_SILENCE
