"""Server-sent events, metered: usage, text and end; and what the client gets to see of them.

**Most events are not read.** What has the shape of an event before it (``shape.py``) is passed, and of its bytes the text alone is kept,
as it came. What is kept is read in one go when a count is wanted: at a checkpoint, at the end if no usage came, and when there is too
much of it. With the final usage nobody wants a count, and nothing is tokenized.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import msgspec
from msgspec import structs

from extproc.exchange.ask import Piece
from extproc.exchange.meter import REASONS, Expected, counted, renamed, with_units
from extproc.exchange.shape import BETWEEN, Shape, events_of, shape_of, texts_of
from extproc.exchange.splice import end_of_object, with_cost
from extproc.exchange.sse import SseDecoder, SseEvent
from extproc.money.hold import EndReason
from extproc.money.usage import Usage, UsageSource
from extproc.tokens.counter import Running
from extproc.tokens.units import TextUnits

KEPT_BYTES_MAX = 2_048
"""Some 250 events of a word. More would save nothing (a reading costs 2 µs beside 0.02 µs an event), and open streams are many."""

TOKEN_BYTES_MAX = 12
"""Of a token of plain text, on average; English ones have 4 to 5."""

SHAPES_TRIED_MAX = 8
"""Shapes in a row that fitted no two events: then no more are looked for. To find one costs as much as to read two events."""

_DONE = b"[DONE]"
_USAGE, _NULL = b',"usage":', b"null"


class Delivered(NamedTuple):
    """``body_bytes`` in all; ``event_bytes`` of an event with output, on average; ``events`` with output."""

    body_bytes: int
    event_bytes: int
    events: int


class StreamMeter:
    """Server-sent events. Memory: one running count a choice, one unfinished event, a shape, and what is kept."""

    __slots__ = (
        "_begun", "_counted", "_done", "_echoing", "_edits", "_error", "_events", "_expected", "_final", "_finish", "_kept",
        "_output_bytes", "_receipt", "_running", "_shape", "_shown_bytes", "_sse", "_texts", "_tokens", "_told_output", "_tries",
        "_units", "complete",
    )  # fmt: skip

    def __init__(self, expected: Expected) -> None:
        self._expected = expected
        self._edits = expected.hide_final or expected.hide_running or expected.tells_cost or expected.rename is not None
        self._sse = SseDecoder()
        self._shape: Shape | None = None
        self._kept = bytearray()  # insides of events of this shape, each with BETWEEN behind it
        self._tries = SHAPES_TRIED_MAX
        self._texts: dict[int, Running] = {}
        self._units: dict[int, TextUnits] = {}  # if they are priced
        self._echoing: dict[int, int] = {}  # characters of its prompt that each choice has still to repeat
        self._tokens: dict[int, int] = {}  # of each choice, by its log-probabilities
        self._begun: Mapping[str, Any] = {}  # what was told of the usage before there was output
        self._running: dict[int, Any] = {}  # last per-chunk usage of each choice
        self._final: Any = None
        self._receipt: tuple[bytes, Any] | None = None  # the event with the final usage as the client gets it, and that usage
        self._finish = ""
        self._error = False
        self._done = False
        self._events = 0  # without what is kept
        self._shown_bytes = 0  # that the client has of whole events, without what is kept
        self._output_bytes = 0  # … of those with output
        self._counted = 0, 0  # tokens of the last count of ours, and of how many events that was
        self._told_output = False
        self.complete = False

    @property
    def started(self) -> bool:
        return self._events > 0 or self._told_output  # whatever is kept has the shape of an event with output

    @property
    def events(self) -> int:
        texts = self._kept_texts()
        if texts is None:
            self._read_kept()
            return self._events
        return self._events + len(texts)

    def feed(self, chunk: bytes, *, end_of_stream: bool) -> bytes:
        """Look at every event that this chunk completes. Without anything to hide, what goes out is what came in."""
        shape = self._shape
        if shape is not None and not self._sse.pending:
            insides = shape.insides(chunk)
            if insides is not None:
                kept = self._kept
                kept += insides
                kept += BETWEEN
                if len(kept) > KEPT_BYTES_MAX:
                    self._read_kept()
                return chunk if shape.shown is None else events_of(insides, *shape.shown)
        events = self._sse.feed(chunk)
        if end_of_stream:
            events += self._sse.flush()
        shown = b"".join([self._show(event) for event in events])
        return shown if self._edits else chunk

    def rest_of_event(self, chunk: bytes) -> bytes | None:
        """What of this chunk ends the event whose beginning the client has got; ``None``: it goes on beyond it. Nothing is counted.

        An SDK reads half an event as broken JSON, whatever we say behind it.
        """
        if self._edits:
            return b""  # whole events are passed alone
        begun = len(self._sse.pending)
        if not begun:
            return b""
        events = self._sse.feed(chunk)
        return events[0].raw[begun:] if events else None

    def priced(self, shown: bytes, cost_nanos: int) -> bytes:
        """The final usage event stands in it whole: where anything may be changed, events are not passed before they are complete."""
        if self._receipt is None:
            return shown
        (event, usage), self._receipt = self._receipt, None
        before, found, behind = shown.rpartition(event)
        return before + with_cost(event, usage, cost_nanos) + behind if found else shown

    def _show(self, event: SseEvent) -> bytes:
        """Look at an event; what the client gets of it."""
        piece = self._look(event)
        shown = self._edit(event, piece) if self._edits else event.raw
        self._shown_bytes += len(shown)
        if piece is not None and (piece.texts or piece.tokens):
            self._output_bytes += len(shown)
        return shown

    def _kept_texts(self) -> list[str] | None:
        return texts_of(bytes(self._kept[: -len(BETWEEN)])) if self._kept else []

    def _kept_bytes(self, events: int) -> int:
        """Of the so many events that are kept, as the client has them."""
        shape = self._shape
        if shape is None:
            return 0
        around_bytes = shape.around_bytes if shape.shown is None else len(shape.shown[0]) + len(shape.shown[1])
        return len(self._kept) + events * (around_bytes - len(BETWEEN))

    def _read_kept(self) -> None:
        """Count what is kept, as if it had been read when it came."""
        shape, texts = self._shape, self._kept_texts()
        if shape is None or texts == []:
            return
        insides, shown_bytes = bytes(self._kept[: -len(BETWEEN)]), self._kept_bytes(self._kept.count(BETWEEN))
        self._shown_bytes += shown_bytes
        self._output_bytes += shown_bytes
        self._kept.clear()
        if texts is None:
            for event in SseDecoder().feed(events_of(insides, shape.front, shape.back)):
                self._look(event)
            return
        if len(texts) > 1:
            self._tries = SHAPES_TRIED_MAX
        self._events += len(texts)
        self._count_text(shape.index, "".join(texts))

    def usage(self, *, ended_early: bool) -> Usage:
        """See the order of truth above. An early end never waits for the rest: what was delivered is what counts."""
        del ended_early
        expected = self._expected
        usage = self._tokens_used()
        if not expected.needs_text:
            return with_units(usage, expected, 0, 0)
        self._read_kept()
        units = self._units.values()
        return with_units(usage, expected, sum(text.characters for text in units), sum(text.words for text in units))

    def prompt_usage(self) -> Usage:
        """The prompt alone, as it was told, if it was."""
        usage = self._said() or self._counted_by_us(0, UsageSource.COUNTED)
        return with_units(structs.replace(usage, output_tokens=0, reasoning_tokens=0), self._expected, 0, 0)

    def _tokens_used(self) -> Usage:
        said = self._said()
        if said is not None:
            return said
        expected = self._expected
        self._read_kept()
        if expected.counter is None:
            return self._counted_by_us(max(self.events, sum(self._tokens.values())), UsageSource.CHUNKS)
        texts = {index: text.total() for index, text in self._texts.items()}
        if expected.echoes:  # log-probabilities are of a prompt's tokens too
            output = sum(max(0, total - expected.echo(index).tokens) for index, total in texts.items())
        else:
            output = sum(max(texts.get(index, 0), self._tokens.get(index, 0)) for index in texts.keys() | self._tokens.keys())
        self._counted = output, self._events
        return self._counted_by_us(output, UsageSource.COUNTED)

    def usage_at_least(self) -> Usage:
        """As :meth:`usage`, but little is tokenized for it: the last count, and a token for each event since, where that has been true."""
        tokens, events = self._counted
        expected = self._expected
        if (
            self._final
            or self._running
            or expected.needs_text
            or expected.echoes
            or tokens != events
            or (events <= 1 and self._is_uneven())
        ):
            return self.usage(ended_early=True)
        events = self._events + self._kept.count(BETWEEN) - events
        usage = self._counted_by_us(tokens + events, UsageSource.COUNTED if expected.counter else UsageSource.CHUNKS)
        return with_units(usage, expected, 0, 0)

    def delivered(self) -> Delivered:
        """What the client has of whole events."""
        kept_events = self._kept.count(BETWEEN)
        kept, events = self._kept_bytes(kept_events), self._events + kept_events or 1
        return Delivered(self._shown_bytes + kept, (self._output_bytes + kept) // events, events)

    def _is_uneven(self) -> bool:
        """Whether what is kept looks as if events had more than one token: letters that are no English, or many of them."""
        return not self._kept.isascii() or len(self._kept) > self._kept.count(BETWEEN) * (len(BETWEEN) + TOKEN_BYTES_MAX)

    def _said(self) -> Usage | None:
        """What the backend says itself."""
        expected = self._expected
        if self._final is not None:
            usage = expected.endpoint.usage(self._with_begun(self._final), UsageSource.UPSTREAM, expected)
            if usage is not None:
                return usage
        running = {
            index: usage
            for index, raw in self._running.items()
            if (usage := expected.endpoint.usage(self._with_begun(raw), UsageSource.CONTINUOUS, expected)) is not None
        }
        return _summed(running, expected) if running else None

    def _with_begun(self, raw: Any) -> Any:
        """What was told at the beginning stands where the end does not say otherwise."""
        if not self._begun or not isinstance(raw, dict):
            return raw
        return {**self._begun, **{name: value for name, value in raw.items() if value is not None}}

    def _counted_by_us(self, output_tokens: int, source: UsageSource) -> Usage:
        """The prompt as it was told, if it was."""
        told = self._begun if self._final is None else self._with_begun(self._final)
        return counted(self._expected, output_tokens, source, told)

    def reason(self) -> EndReason | None:
        """An error event or ``abort`` wins over what else was said; ``[DONE]`` alone is no success (VLLM.md)."""
        if self._error:
            return EndReason.UPSTREAM_ERROR
        if self._finish == "abort":
            return EndReason.ABORT
        if self._finish:
            return REASONS.get(self._finish, EndReason.STOP)
        return EndReason.UPSTREAM_ERROR if self._done else None

    def _look(self, event: SseEvent) -> Piece | None:
        data = event.data
        if not data:
            return None
        if data.strip() == _DONE:
            self._done = self.complete = True
            return None
        piece = self._expected.endpoint.read_event(data)
        if piece.texts or piece.tokens:
            self._read_kept()
            self._events += 1
            self._count(piece)
            self._learn(event.raw, piece)
        if self._expected.trust_usage:
            if piece.begun is not None:
                self._begun = piece.begun
            if piece.usage is not None:
                self._remember(piece)
        if piece.done:
            self._done = self.complete = True
        if piece.finish:
            self._finish = piece.finish
        self._error = self._error or piece.error
        return piece

    def _count(self, piece: Piece) -> None:
        for index, tokens in piece.tokens:
            if index in self._tokens or len(self._tokens) < self._expected.choices:
                self._tokens[index] = self._tokens.get(index, 0) + tokens
        for index, text in piece.texts:
            self._count_text(index, text)

    def _count_text(self, index: int, text: str) -> None:
        expected = self._expected
        if expected.echoes:
            text = self._without_echo(index, text)
        if expected.needs_text:
            units = self._units.get(index)
            if units is None:
                units = self._units.setdefault(self._known(index, self._units), TextUnits())
            units.feed(text)
        if expected.counter is None:
            return
        running = self._texts.get(index)
        if running is None:
            running = self._texts.setdefault(self._known(index, self._texts), expected.counter.running())
        running.feed(text)

    def _without_echo(self, index: int, text: str) -> str:
        """What of this choice's next text is no repetition of its prompt."""
        left = self._echoing.get(index)
        if left is None:
            left = self._expected.echo(index).characters
        if 0 <= index < self._expected.choices:
            self._echoing[index] = max(0, left - len(text))
        return text[left:]

    def _known(self, index: int, texts: Mapping[int, object]) -> int:
        """Indexes are the backend's: more of them than were asked for are counted as one text."""
        return index if len(texts) < self._expected.choices else next(iter(texts))

    def _learn(self, raw: bytes, piece: Piece) -> None:
        """Take this event's shape, if it is another one, and all that the event says is a text."""
        if not self._tries or len(piece.texts) != 1 or piece != Piece(texts=piece.texts, index=piece.index):
            return
        if self._shape is None or self._shape.insides(raw) is None:
            self._tries -= 1
            self._shape = shape_of(raw, *piece.texts[0], self._read_alone)

    def _read_alone(self, chunk: bytes) -> tuple[Piece, bytes] | None:
        """Twice, because events that are kept are read again in a row: there they must be the same events."""
        events = SseDecoder().feed(chunk + chunk)
        if [event.raw for event in events] != [chunk, chunk]:
            return None
        piece = self._expected.endpoint.read_event(events[0].data)
        return piece, self._edit(events[0], piece)

    def _remember(self, piece: Piece) -> None:
        if piece.final:
            self._final = piece.usage
            self.complete = True
            return
        if piece.index in self._running or len(self._running) < self._expected.choices:
            self._running[piece.index] = piece.usage
            if not self.started:  # tokens need not show any text
                said = self._said()
                self._told_output = said is not None and said.output_tokens > 0

    def _edit(self, event: SseEvent, piece: Piece | None) -> bytes:
        expected = self._expected
        if piece is None:
            return event.raw
        if piece.error:
            return renamed(event.raw, expected.rename)
        if piece.final:
            shown = b"" if expected.hide_final else renamed(event.raw, expected.rename)
            self._receipt = (shown, piece.usage) if shown and expected.tells_cost else None
            return shown
        raw = without_usage(event) if expected.hide_running and b'"usage"' in event.data else event.raw
        return renamed(raw, expected.rename)


def _summed(running: Mapping[int, Usage], expected: Expected) -> Usage:
    """Per-chunk usage counts each choice, and each prompt, by itself (VLLM.md): completions are summed over choices, prompts once each.

    vLLM numbers choices over all prompts: choice = prompt × n + i. Prompts that have not been heard of are in our own count.
    """
    each = max(1, expected.choices // expected.prompts)
    prompts = {index // each: usage for index, usage in running.items()}
    read = sum(usage.input_tokens for usage in prompts.values())
    if len(prompts) < expected.prompts:
        read = max(read, expected.prompt.input_tokens)
    read, outputs = min(read, expected.input_tokens_max), sum(usage.output_tokens for usage in running.values())
    output = min(outputs, expected.output_tokens_max)
    cached = min(read, sum(usage.cached_tokens for usage in prompts.values()))
    flags = [flag for usage in running.values() for flag in usage.flags]
    return Usage(
        input_tokens=read,
        cached_tokens=cached,
        cache_creation_tokens=min(read - cached, sum(usage.cache_creation_tokens for usage in prompts.values())),
        output_tokens=output,
        reasoning_tokens=min(output, sum(usage.reasoning_tokens for usage in running.values())),
        source=UsageSource.CONTINUOUS,
        flags=tuple(dict.fromkeys(flags if output == outputs else [*flags, "output_tokens_impossible"])),
    )


def without_usage(event: SseEvent) -> bytes:
    """The event without its top-level ``usage`` member, every other byte as it was; unchanged if that is not certain.

    Nearly always the last member; vLLM has two more behind it in the first chunk of a choice.
    """
    data = event.data
    start = data.rfind(_USAGE)
    if start < 0 or not event.raw.startswith(b"data:") or b"\ndata:" in event.raw:
        return event.raw
    value = start + len(_USAGE)
    end = value + len(_NULL) if data.startswith(_NULL, value) else end_of_object(data, value)
    if end < 0:
        return event.raw
    rest = data[end:]
    try:
        msgspec.json.decode(data[value:end])
        if rest != b"}":
            msgspec.json.decode(b'{"":0' + rest)  # what is behind it ends one object: the event's own
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return event.raw
    return event.raw.replace(data, data[:start] + rest, 1)
