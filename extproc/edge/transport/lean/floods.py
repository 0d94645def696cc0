"""What costs us something and tells us nothing is counted, by the second; above its allowance the connection ends (ENHANCE_YOUR_CALM)."""

from __future__ import annotations

from collections.abc import Callable

from extproc.edge.transport.lean import limits
from extproc.edge.transport.lean.frames import ConnectionFault, ErrorCode


class Allowance:
    """So many at once, refilled by the second. The clock is asked only when nothing is left."""

    __slots__ = ("_at_s", "_burst", "_clock", "_left", "_per_s", "_what")

    def __init__(self, rate: tuple[int, int], clock: Callable[[], float], what: str) -> None:
        self._burst, self._per_s = rate
        self._left = float(self._burst)
        self._clock = clock
        self._at_s = clock()
        self._what = what

    def take(self) -> None:
        """One more. Raises ConnectionFault when it is one too many."""
        if self._left < 1:
            now_s = self._clock()
            self._left = min(self._burst, self._left + (now_s - self._at_s) * self._per_s)
            self._at_s = now_s
            if self._left < 1:
                raise ConnectionFault(ErrorCode.ENHANCE_YOUR_CALM, f"too many {self._what}")
        self._left -= 1


class Floods:
    """The allowances of one connection."""

    __slots__ = ("early_end", "empty_data", "odd_frame", "ping", "settings")

    def __init__(self, clock: Callable[[], float]) -> None:
        self.ping = Allowance(limits.PINGS, clock, "PINGs").take
        self.settings = Allowance(limits.SETTINGS, clock, "SETTINGS").take
        self.empty_data = Allowance(limits.EMPTY_DATA, clock, "empty DATA frames").take
        self.early_end = Allowance(limits.EARLY_ENDS, clock, "streams without a message").take
        self.odd_frame = Allowance(limits.ODD_FRAMES, clock, "frames that say nothing").take
