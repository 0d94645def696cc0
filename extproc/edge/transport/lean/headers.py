"""Header blocks: requests by their bytes, answers as constants.

We announce a dynamic table of size 0. Once the peer has acknowledged that, its next block begins with a size update to 0 (RFC 7541, 4.2;
the decoder insists), and from then on blocks are stateless: the same bytes mean the same headers. Until then, the connection's HPACK state
decodes them: Envoy sends requests before it has our SETTINGS.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from hpack import Decoder
from hpack.exceptions import HPACKError

from extproc.edge.transport.lean import limits
from extproc.edge.transport.lean.frames import ConnectionFault, ErrorCode

_GRPC: Final = b"application/grpc"
_CONNECTION_HEADERS: Final = frozenset({b"connection", b"keep-alive", b"proxy-connection", b"transfer-encoding", b"upgrade"})
_PSEUDO: Final = frozenset({b":method", b":scheme", b":path", b":authority"})
_UPPER: Final = frozenset(range(ord("A"), ord("Z") + 1))


class Request(NamedTuple):
    """What a header block asks for. ``well_formed`` = HTTP/2's rules hold (RFC 9113, 8.1); ``grpc`` = a POST of gRPC."""

    path: bytes
    well_formed: bool
    grpc: bool


class Fragments:
    """A header block that comes in several frames. ``flags`` are those of its first one."""

    __slots__ = ("_frames", "_parts", "flags")

    def __init__(self, first: bytes, flags: int) -> None:
        self._parts = bytearray(first)
        self._frames = 1
        self.flags = flags

    def add(self, part: bytes) -> None:
        """One CONTINUATION. Raises ConnectionFault."""
        self._parts += part
        self._frames += 1
        if len(self._parts) > limits.HEADER_BLOCK_BYTES_MAX or self._frames > limits.CONTINUATIONS_MAX:
            raise ConnectionFault(ErrorCode.ENHANCE_YOUR_CALM, "header block too long")

    def whole(self) -> bytes:
        return bytes(self._parts)


class RequestBlocks:
    """The requests of one connection."""

    __slots__ = ("_acknowledged", "_decoder", "_hits", "_lookups", "_remembered", "_stateless")

    def __init__(self) -> None:
        self._decoder = Decoder(max_header_list_size=limits.HEADER_BLOCK_BYTES_MAX)
        self._remembered: dict[bytes, Request] | None = {}
        self._acknowledged = False
        self._stateless = False
        self._lookups = 0
        self._hits = 0

    def acknowledged(self) -> None:
        """The peer has our SETTINGS: whatever it encodes from now on fits a table of size 0."""
        self._decoder.max_allowed_table_size = 0
        self._acknowledged = True

    def request(self, block: bytes) -> Request:
        """Raises ConnectionFault when the block cannot be decoded: the state of the table is lost then."""
        remembered = self._remembered
        if remembered is None or not self._stateless:
            return self._decoded(block)
        self._lookups += 1
        known = remembered.get(block)
        if known is not None:
            self._hits += 1
            return known
        request = self._decoded(block)
        if len(block) <= limits.REQUEST_BLOCK_BYTES_MAX and len(remembered) < limits.REQUEST_BLOCKS_MAX:
            remembered[block] = request
        if self._lookups >= limits.LOOKUPS_JUDGED:
            if 2 * self._hits < self._lookups:
                self._remembered = None
            self._lookups = self._hits = 0
        return request

    def _decoded(self, block: bytes) -> Request:
        try:
            fields = self._decoder.decode(block, raw=True)
        except HPACKError as error:
            raise ConnectionFault(ErrorCode.COMPRESSION_ERROR, str(error)[:100]) from error
        self._stateless = self._acknowledged  # else the decoder had raised: the peer's table is larger than 0
        return _request([(field[0], field[1]) for field in fields])


def _request(fields: list[tuple[bytes, bytes]]) -> Request:
    pseudo: dict[bytes, bytes] = {}
    content_type = b""
    well_formed = True
    regular = False
    for name, value in fields:
        if name[:1] == b":":
            well_formed &= not regular and name in _PSEUDO and name not in pseudo
            pseudo[name] = value
            continue
        regular = True
        well_formed &= name not in _CONNECTION_HEADERS and bool(name) and _UPPER.isdisjoint(name)
        if name == b"content-type":
            content_type = value
    method = pseudo.get(b":method", b"")
    path = pseudo.get(b":path", b"")
    well_formed &= bool(method and path and pseudo.get(b":scheme"))
    return Request(path, well_formed, method == b"POST" and content_type.startswith(_GRPC))


# ---- answers: literals that no table remembers, so the bytes are the same on every connection

_STATUS_200: Final = b"\x88"


def _integer(value: int, bits: int) -> bytes:
    """RFC 7541, 5.1, with the bits above it 0."""
    full = (1 << bits) - 1
    if value < full:
        return bytes((value,))
    digits = bytearray((full,))
    value -= full
    while value > 127:
        digits.append(value & 127 | 128)
        value >>= 7
    digits.append(value)
    return bytes(digits)


def _literal(name: bytes, value: bytes) -> bytes:
    """Without indexing, new name, no Huffman code (RFC 7541, 6.2.2)."""
    return b"\x00" + _integer(len(name), 7) + name + _integer(len(value), 7) + value


RESPONSE: Final = _STATUS_200 + _literal(b"content-type", _GRPC)
OK_TRAILERS: Final = _literal(b"grpc-status", b"0")
NOT_GRPC: Final = _literal(b":status", b"415")


def error_trailers(code: int, message: str) -> bytes:
    """``grpc-status`` and ``grpc-message``, percent-encoded as gRPC wants it. The message is cut to 200 characters."""
    assert code > 0, "status 0 is sent by OK_TRAILERS only"
    text = "".join(chr(byte) if 32 <= byte < 127 and byte != 37 else f"%{byte:02X}" for byte in message[:200].encode("utf-8", "replace"))
    return _literal(b"grpc-status", b"%d" % code) + _literal(b"grpc-message", text.encode())
