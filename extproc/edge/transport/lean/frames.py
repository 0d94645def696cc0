"""HTTP/2 frames (RFC 9113): numbers, and how to write those that we send. Reading is in place, in ``connection``."""

from __future__ import annotations

import enum
import struct
from typing import Final

PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
HEAD_BYTES: Final = 9
PREFIX_BYTES: Final = 5
"""Of a gRPC message: compressed or not, length."""

DATA: Final = 0
HEADERS: Final = 1
PRIORITY: Final = 2
RST_STREAM: Final = 3
SETTINGS: Final = 4
PUSH_PROMISE: Final = 5
PING: Final = 6
GOAWAY: Final = 7
WINDOW_UPDATE: Final = 8
CONTINUATION: Final = 9

END_STREAM: Final = 0x01
ACK: Final = 0x01
END_HEADERS: Final = 0x04
PADDED: Final = 0x08
WITH_PRIORITY: Final = 0x20

HEADER_TABLE_SIZE: Final = 1
ENABLE_PUSH: Final = 2
MAX_CONCURRENT_STREAMS: Final = 3
INITIAL_WINDOW_SIZE: Final = 4
MAX_FRAME_SIZE: Final = 5
MAX_HEADER_LIST_SIZE: Final = 6

WINDOW_MAX: Final = 2**31 - 1
WINDOW_DEFAULT: Final = 65_535
STREAM_ID_MAX: Final = 2**31 - 1


class ErrorCode(enum.IntEnum):
    """RFC 9113, 7: those that we send."""

    NO_ERROR = 0
    PROTOCOL_ERROR = 1
    FLOW_CONTROL_ERROR = 3
    STREAM_CLOSED = 5
    FRAME_SIZE_ERROR = 6
    REFUSED_STREAM = 7
    COMPRESSION_ERROR = 9
    ENHANCE_YOUR_CALM = 11


class ConnectionFault(Exception):
    """The peer broke the protocol so that the whole connection must end. Never leaves ``connection``."""

    def __init__(self, code: ErrorCode, reason: str) -> None:
        super().__init__(reason)
        self.code = code
        self.reason = reason


read_head: Final = struct.Struct(">LBL").unpack_from
"""(length << 8 | type, flags, stream id with its reserved bit)"""
read_prefix: Final = struct.Struct(">BL").unpack_from
read_number: Final = struct.Struct(">L").unpack_from
read_setting: Final = struct.Struct(">HL").iter_unpack

_head: Final = struct.Struct(">LBL").pack
_short: Final = struct.Struct(">LBLL").pack
message_head: Final = struct.Struct(">LBLBL").pack
"""Of a DATA frame with one whole message: (frame length << 8 | DATA, flags, stream id, not compressed, message length). The hot path's, so
it is no function of Python's."""


def head(kind: int, flags: int, stream_id: int, length: int) -> bytes:
    """The nine bytes before every payload."""
    return _head(length << 8 | kind, flags, stream_id)


def rst_stream(stream_id: int, code: ErrorCode) -> bytes:
    """Ends a stream at once."""
    return _short(4 << 8 | RST_STREAM, 0, stream_id, code)


def window_update(stream_id: int, increment: int) -> bytes:
    """The peer may send so many bytes more; stream 0 = the connection."""
    assert 0 < increment <= WINDOW_MAX, increment
    return _short(4 << 8 | WINDOW_UPDATE, 0, stream_id, increment)


def settings(values: dict[int, int]) -> bytes:
    """What we announce."""
    return head(SETTINGS, 0, 0, 6 * len(values)) + b"".join(struct.pack(">HL", *item) for item in values.items())


SETTINGS_ACK: Final = head(SETTINGS, ACK, 0, 0)


def ping_ack(opaque: bytes) -> bytes:
    """The answer to a PING, with its eight bytes."""
    assert len(opaque) == 8, opaque
    return head(PING, ACK, 0, 8) + opaque


def goaway(last_stream_id: int, code: ErrorCode, reason: str = "") -> bytes:
    """Streams above ``last_stream_id`` were not and will not be served."""
    debug = reason.encode()
    return head(GOAWAY, 0, 0, 8 + len(debug)) + struct.pack(">LL", last_stream_id, code) + debug


# ---- reading


def check_length(length: int, expected: int) -> None:
    """Of a frame that has only one. Raises ConnectionFault."""
    if length != expected:
        raise ConnectionFault(ErrorCode.FRAME_SIZE_ERROR, f"{length} bytes instead of {expected}")


def unpadded(data: bytes, start: int, stop: int) -> tuple[int, int]:
    """Where a padded payload begins and ends. Raises ConnectionFault."""
    if start == stop:
        raise ConnectionFault(ErrorCode.FRAME_SIZE_ERROR, "padded frame without its length of padding")
    padding = data[start]
    if padding > stop - start - 1:
        raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "padding longer than its frame")
    return start + 1, stop - padding
