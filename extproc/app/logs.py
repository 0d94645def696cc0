"""Log lines as JSON (for Loki) or text. No prompt, no completion, no key ever gets here: messages are ours, fields are ids and counts."""

from __future__ import annotations

import json
import logging
import sys
import time
from collections.abc import Callable
from typing import Final

_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


SPAN_S: Final = 10.0
LINES_MAX: Final = 100  # of one message in that time: what is told of each request is otherwise 2 GB an hour while a store is away
MESSAGES_MAX: Final = 1_000  # remembered at once: they are constants of ours, but for those that others format


class Flood(logging.Filter):
    """Lets so many lines of one message through; the first one afterwards says how many were ``omitted``."""

    def __init__(self, monotonic_s: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._monotonic_s = monotonic_s
        self._seen: dict[tuple[str, object], tuple[float, int]] = {}  # when its time began, and how many came since

    def filter(self, record: logging.LogRecord) -> bool:
        """See :class:`logging.Filter`."""
        now_s, message = self._monotonic_s(), (record.name, record.msg)
        if message not in self._seen and len(self._seen) >= MESSAGES_MAX:
            self._seen.clear()
        began_s, count = self._seen.get(message, (now_s, 0))
        if now_s - began_s < SPAN_S:
            self._seen[message] = began_s, count + 1
            return count < LINES_MAX
        if count > LINES_MAX:
            record.omitted = count - LINES_MAX
        self._seen[message] = now_s, 1
        return True


class JsonLines(logging.Formatter):
    """One object a line: time, level, process, logger, message, and what was passed as ``extra``."""

    def __init__(self, process: str) -> None:
        super().__init__()
        self._process = process

    def format(self, record: logging.LogRecord) -> str:
        """See :class:`logging.Formatter`."""
        line: dict[str, object] = {
            "ts": self.formatTime(record, "%Y-%m-%dT%H:%M:%S") + f".{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "process": self._process,
            "logger": record.name,
            "msg": record.getMessage(),
        }
        line.update({name: value for name, value in vars(record).items() if name not in _STANDARD})
        if record.exc_info:
            line["error"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


def set_up(*, level: str, form: str, process: str) -> None:
    """Everything to stderr, as ``log.level`` and ``log.format`` say."""
    handler = logging.StreamHandler(sys.stderr)
    if form == "json":
        formatter: logging.Formatter = JsonLines(process)
    else:
        formatter = logging.Formatter(f"%(asctime)s {process} %(levelname)s %(name)s: %(message)s")
    formatter.converter = time.gmtime
    handler.setFormatter(formatter)
    handler.addFilter(Flood())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
