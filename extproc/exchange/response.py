"""The second half: a backend answers, and what it delivered is charged. Steps of the machine's table."""

from __future__ import annotations

from extproc.exchange.actions import Pairs, PassChunk, PassResponseHeaders, PassTrailers
from extproc.exchange.events import Chunk, ResponseHeaders, Trailers
from extproc.exchange.figures import ended
from extproc.exchange.meter import OpaqueMeter
from extproc.exchange.meter_answer import AnswerMeter
from extproc.exchange.meter_stream import StreamMeter
from extproc.exchange.replies import rate_headers
from extproc.exchange.state import PASS, Outcome, State
from extproc.exchange.tab import Finish, Tab
from extproc.money.amount import format_amount
from extproc.money.hold import EndReason
from extproc.money.usage import UsageSource

PASSED: Outcome = (State.STREAMING, (PASS,))  # what nearly every message of Envoy comes to
FAILURES = frozenset({EndReason.UPSTREAM_ERROR, EndReason.ABORT})  # as the backend itself tells them


def headers(tab: Tab, event: ResponseHeaders) -> Outcome:
    """The backend has begun to answer, or failed."""
    tab.status, tab.upstream, tab.attempts = event.status, event.upstream, event.attempts
    if not 200 <= event.status < 300 or event.end_of_stream:
        return pass_and_void(tab, event)
    return State.STREAMING, (_begin(tab, event),)


def _begin(tab: Tab, event: ResponseHeaders) -> PassResponseHeaders:
    """Give the tab its meter; the reply to the headers of a success."""
    expected = tab.expected
    assert expected is not None
    assert tab.sized is not None
    headers: Pairs = (("x-request-id", tab.request_id),) if tab.request_id else ()
    if (tab.requests_left is not None or tab.tokens_left is not None) and not tab.is_shadow:
        headers = (*headers, *rate_headers("requests", tab.requests_left), *rate_headers("tokens", tab.tokens_left))
    if tab.clamped:
        headers = (*headers, ("x-max-tokens-clamped", str(tab.sized.output_each)))
    length = event.headers.get("content-length", "")
    length_bytes = int(length) if length.isdecimal() else -1
    if event.headers.get("content-encoding", "identity").lower() != "identity":
        tab.meter = OpaqueMeter(expected, length_bytes=length_bytes)
        return PassResponseHeaders(set_headers=headers)
    content_type = event.headers.get("content-type", "").lower()
    if content_type.startswith("text/event-stream") or (tab.stream and "json" not in content_type):
        tab.meter = StreamMeter(expected)
        return PassResponseHeaders(set_headers=headers, remove_headers=("content-length",) if length else ())
    # A buffered answer can still get headers and another length; above half of Envoy's buffer it would hang (ENVOY.md).
    buffer = 0 <= length_bytes <= tab.pinned.bounds.body_bytes_max // 2
    tab.meter = AnswerMeter(expected, length_bytes=length_bytes)
    changed = length and not buffer and expected.rename is not None
    return PassResponseHeaders(buffer=buffer, set_headers=headers, remove_headers=("content-length",) if changed else ())


def pass_and_void(tab: Tab, event: ResponseHeaders) -> Outcome:
    """The backend failed, or Envoy answered by itself (413, 408, 503, 504): nothing is charged."""
    tab.status = event.status
    reason = EndReason.UPSTREAM_ERROR if tab.is_forwarded else EndReason.REFUSED
    void = tab.void(reason, event.at_ns, error_code=f"http_{event.status}", error=event.code_details)
    return State.ENDED, (PassResponseHeaders(), *void)


def chunk(tab: Tab, event: Chunk) -> Outcome:
    """An ordinary chunk is answered at once; the last one waits until its settle is safe."""
    meter = tab.meter
    assert meter is not None
    data = meter.feed(event.data, end_of_stream=event.end_of_stream)
    if event.end_of_stream or meter.complete:
        return _last_chunk(tab, event, data)
    if event.at_ns < tab.figures_due_ns:
        return PASSED if data == event.data else (State.STREAMING, (_pass_chunk(event, data),))
    tab.ttft_ns = tab.ttft_ns or event.at_ns
    if not meter.started:
        return State.STREAMING, (_pass_chunk(event, data),)
    # Something has been delivered: from here on a worker that dies must not take the whole charge with it.
    beat = () if tab.figures_due_ns else tab.beat(event.at_ns)
    return State.STREAMING, (_pass_chunk(event, data, tab.tell(event.at_ns)), *beat)


def _last_chunk(tab: Tab, event: Chunk, data: bytes) -> Outcome:
    """The only chunk of a whole answer carries the cost as a header."""
    whole = event.end_of_stream and not tab.ttft_ns
    tab.ttft_ns = tab.ttft_ns or event.at_ns
    *end, note = _final(tab, event.at_ns)
    cost_nanos = note.record.cost_nanos
    assert tab.meter is not None
    data = tab.meter.priced(data, cost_nanos)
    cost = (("x-request-cost", format_amount(cost_nanos)),) if whole else ()
    return State.ENDED, (*end, _pass_chunk(event, data, ended(note.record.end_reason), cost), note)


def _pass_chunk(event: Chunk, data: bytes, metadata: Pairs = (), set_headers: Pairs = ()) -> PassChunk:
    changed = None if data == event.data else data
    return PassChunk(data=changed, set_headers=set_headers, metadata=metadata) if changed is not None or metadata else PASS


def _final(tab: Tab, at_ns: int) -> Finish:
    """The answer is complete. No output and no usage out of a failed backend: void."""
    policy, meter = tab.pinned.policy, tab.meter
    assert meter is not None
    reason = meter.reason() or EndReason.UPSTREAM_ERROR
    usage = meter.usage(ended_early=False)
    failed = reason in FAILURES
    if failed and not meter.started and usage.source is not UsageSource.UPSTREAM:
        return tab.void(reason, at_ns, error_code="upstream_error")
    if not failed and usage.source is not UsageSource.UPSTREAM and tab.trusts_usage:
        tab.decided_by("no_usage", policy.no_usage)
        usage = tab.held_usage() if policy.no_usage == "hold" else usage
    return tab.settle(usage, reason, at_ns, wait=True)


def trailers_end(tab: Tab, event: Trailers) -> Outcome:
    """Trailers of the response end it as the last chunk does."""
    if not event.response:
        return State.STREAMING, (PassTrailers(response=False),)
    if tab.meter is not None:
        tab.meter.feed(b"", end_of_stream=True)
    *end, note = _final(tab, event.at_ns)
    return State.ENDED, (*end, PassTrailers(response=True), note)


def late_chunk(tab: Tab, event: Chunk) -> Outcome:
    """After the end: nothing counts any more, but what was to be hidden stays hidden, and what was kept back goes out."""
    meter = tab.meter
    if meter is None:
        return State.ENDED, (PASS,)
    return State.ENDED, (_pass_chunk(event, meter.feed(event.data, end_of_stream=event.end_of_stream)),)
