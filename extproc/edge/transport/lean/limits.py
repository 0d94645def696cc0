"""A bound on everything that a peer can make us keep or do, and the reason for each.

Only Envoy connects here, yet neither a bug of it nor a client that plays with it must end us.
"""

from __future__ import annotations

from typing import Final

FRAME_BYTES_MAX: Final = 16_384
"""Of one frame's payload, in both directions: HTTP/2's own default and minimum, so no peer has to be asked first."""

STREAMS_MAX: Final = 1_024
"""Open on one connection (announced). Envoy assumes the same number, and opens another connection above it."""

STREAM_ID_LAST: Final = 1 << 30
"""Half of what HTTP/2 has, 15 hours at 20,000 streams/s: then the connection asks Envoy to open another one, long before ids run out."""

HEADER_BLOCK_BYTES_MAX: Final = 32_768
"""Of one header block, CONTINUATION included, and of its decoded list (announced). Envoy's has 0.3 KB, with tracing and a token 4 KB."""

CONTINUATIONS_MAX: Final = 8
"""Frames of one header block. Full ones need two; one byte in each would cost a dictionary look-up a byte."""

REQUEST_BLOCKS_MAX: Final = 64
"""Header blocks remembered by their bytes. Envoy sends two: that of streams and that of health checks."""

REQUEST_BLOCK_BYTES_MAX: Final = 1_024
"""Of a block that is worth remembering: 64 KB a connection in all."""

LOOKUPS_JUDGED: Final = 1_000
"""After so many look-ups the memory of blocks must have answered half of them, or it is given up: tracing makes every block unique."""

STREAM_CREDIT: Final = 65_535
"""Of a stream's receive window while no message is incomplete: HTTP/2's default, so that Envoy knows it before our SETTINGS arrive."""

STREAM_CREDIT_LOW: Final = STREAM_CREDIT // 2
"""Below it the window is filled up again: one WINDOW_UPDATE in some hundred chunks."""

CONNECTION_CREDIT: Final = 16_777_216
"""Of the connection's receive window. Memory is bound by the streams' windows and by RESERVED_BYTES_MAX, so this one never stalls."""

CONNECTION_CREDIT_LOW: Final = CONNECTION_CREDIT // 2

RESERVED_BYTES_MAX: Final = 67_108_864
"""Of long messages (above a stream's window) that may arrive at the same time on one connection: two of the largest, sixty of 1 MB. The
others wait for their turn with a closed window, in order. With 64 KB for each of 1,024 streams: 128 MiB a connection, whatever comes."""

UNSENT_BYTES_MAX: Final = 134_217_728
"""Of replies of one connection that Envoy does not take. The stream that asks for more ends with an error."""

PUMP_BYTES_MAX: Final = 262_144
"""Of long replies joined for one write: large enough to cost nothing by itself, small enough to be copied in 50 µs."""

CONTROL_UNSENT_MAX: Final = 20_000
"""Pieces of output (acknowledgements, ends of streams) that wait while the peer reads nothing. Then it never will."""

CONNECTIONS_MAX: Final = 512
"""Of one worker. Envoy needs one for each of its threads and 1,024 streams."""

# Floods: (at once, a second). What Envoy does in its worst second is far below, what costs us a tenth of a core is above.
PINGS: Final = (1_000, 100)
SETTINGS: Final = (100, 10)
EMPTY_DATA: Final = (1_000, 100)
EARLY_ENDS: Final = (2_000, 1_000)
"""Streams that end before their first complete message, by a reset or without, and streams that we reset because of what the peer sent on
them. Every normal end of Envoy is a reset too: those come after a message and are not counted."""
ODD_FRAMES: Final = (10_000, 10_000)
"""WINDOW_UPDATE, PRIORITY, GOAWAY and frames of unknown types."""
