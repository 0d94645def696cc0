"""Every exception that crosses a package boundary, in one tree.

::

    ExtprocError
    ├── ConfigError          faults in a config file, all at once; exit code 1
    │   └── (faults)         one ``Fault`` a line: file, line, what, what to do
    ├── UsageError           an operator asked for something that cannot be; exit code 1
    ├── ClientError          the client's fault: status and OpenAI code ride on the instance
    ├── StoreError           Redis or PostgreSQL did not do what was asked
    │   ├── StoreRefused     certainly not executed (OOM, LOADING, MOVED, not connected): safe to give up
    │   │   ├── StoreRejected  the store understood and said no: repeating the same says no again
    │   │   └── StoreFenced    the shard is closed, or has another epoch than we know: it is being rebuilt
    │   └── StoreUnknown     may have been executed (time-out, connection lost): void or repeat, never assume
    └── ExchangeError
        └── IllegalEvent     an event that the state does not know: a bug of ours or of Envoy

Foreign exceptions are wrapped once, at the edge that met them, with ``raise … from``. The distinction between
:class:`StoreRefused` and :class:`StoreUnknown` is what keeps money whole: only the first may be treated as "it did not happen".
"""

from __future__ import annotations

from dataclasses import dataclass


class ExtprocError(Exception):
    """Base of everything that we raise on purpose."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """One thing wrong in one place of a config file. ``line`` is 1-based; 0 = the file as a whole."""

    file: str
    line: int
    message: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.message}" if self.line else f"{self.file}: {self.message}"


class ConfigError(ExtprocError):
    """One or more faults in config files. ``str()`` shows each on a line of its own."""

    def __init__(self, faults: tuple[Fault, ...]) -> None:
        super().__init__("\n".join(str(fault) for fault in faults))
        self.faults = faults


class UsageError(ExtprocError):
    """What the operator asked for cannot be done; the message says what to do instead."""


class ClientError(ExtprocError):
    """The request cannot be served as it is; carries what an OpenAI SDK needs to understand why.

    ``status`` is the HTTP status, ``type``/``code``/``param`` are the members of OpenAI's error object.
    """

    def __init__(
        self,
        message: str,
        *,
        status: int = 400,
        type: str = "invalid_request_error",  # noqa: A002 - the name that OpenAI's error object has
        code: str | None = None,
        param: str | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.status = status
        self.type = type
        self.code = code
        self.param = param


class StoreError(ExtprocError):
    """A store did not answer as it should."""


class StoreRefused(StoreError):
    """Certainly not executed."""


class StoreRejected(StoreRefused):
    """Refused for what it contains (a constraint, a type): a repetition is refused as well, so a poster sets it aside."""


class StoreFenced(StoreRefused):
    """The shard is closed: its server restarted, was emptied or promoted, or somebody rebuilds it. It opens again by itself."""


class StoreUnknown(StoreError):
    """Executed or not: nobody knows. The caller repeats it (idempotent) or voids the hold until that is acknowledged."""


class ExchangeError(ExtprocError):
    """An exchange was led wrongly."""


class IllegalEvent(ExchangeError):
    """The table of the exchange has no row for this event in this state."""

    def __init__(self, state: str, event: str) -> None:
        super().__init__(f"{event} is not legal in state {state}")
        self.state = state
        self.event = event
