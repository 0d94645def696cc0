"""A backend has begun to answer: which meter reads it, and what the client's headers become."""

from __future__ import annotations

from extproc.exchange.actions import PassResponseHeaders
from extproc.exchange.events import ResponseHeaders
from extproc.exchange.meter import OpaqueMeter
from extproc.exchange.meter_answer import AnswerMeter
from extproc.exchange.meter_stream import StreamMeter
from extproc.exchange.tab import Tab


def begin(tab: Tab, event: ResponseHeaders) -> PassResponseHeaders:
    """Give the tab its meter; the reply to the headers of a success."""
    expected = tab.expected
    assert expected is not None
    assert tab.sized is not None
    headers: tuple[tuple[str, str], ...] = (("x-request-id", tab.request_id),) if tab.request_id else ()
    if tab.clamped:
        headers = (*headers, ("x-max-tokens-clamped", str(tab.sized.output_each)))
    if event.headers.get("content-encoding", "identity").lower() != "identity":
        tab.meter = OpaqueMeter(expected)
        return PassResponseHeaders(set_headers=headers)
    length = event.headers.get("content-length", "")
    content_type = event.headers.get("content-type", "").lower()
    if content_type.startswith("text/event-stream") or (tab.stream and "json" not in content_type):
        tab.meter = StreamMeter(expected)
        return PassResponseHeaders(set_headers=headers, remove_headers=("content-length",) if length else ())
    tab.meter = AnswerMeter(expected)
    # A buffered answer can still get headers and another length; above half of Envoy's buffer it would hang (ENVOY.md).
    buffer = length.isdigit() and int(length) <= tab.pinned.bounds.body_bytes_max // 2
    changed = length and not buffer and expected.rename is not None
    return PassResponseHeaders(buffer=buffer, set_headers=headers, remove_headers=("content-length",) if changed else ())
