"""``grpc.health.v1.Health/Check`` on the endpoint of the streams, answered by the worker's own loop: a hung worker answers nothing.

Sans IO: bytes in, bytes out. The two messages have one field each, so their bytes are written out here instead of being generated::

    message HealthCheckRequest  { string service = 1; }
    message HealthCheckResponse { ServingStatus status = 1; }   // SERVING = 1, NOT_SERVING = 2
"""

from __future__ import annotations

from typing import Final

METHOD: Final = "/grpc.health.v1.Health/Check"

_SERVING: Final = b"\x08\x01"
_NOT_SERVING: Final = b"\x08\x02"


class Health:
    """Of the whole worker: whatever service is asked for, the answer is the same. Not serving until ``serve`` was called."""

    __slots__ = ("_serving",)

    def __init__(self) -> None:
        self._serving = False

    @property
    def serving(self) -> bool:
        return self._serving

    def serve(self) -> None:
        """Ready: everything that a request needs has been reached once."""
        self._serving = True

    def withdraw(self) -> None:
        """Draining, or a store is away for good: Envoy sends new requests elsewhere."""
        self._serving = False

    def check(self, request: bytes) -> bytes:
        """The answer to one HealthCheckRequest."""
        del request  # one answer for every service name
        return _SERVING if self._serving else _NOT_SERVING
