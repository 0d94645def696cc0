"""How much a backend has delivered: usage, text and the end, out of response bytes; and what of them the client gets to see.

Order of truth (VLLM.md): the final usage object; the last per-chunk usage, summed over choices; our own count of the delivered text,
beside the prompt that was told at the beginning, if it was; events. Last one wins, nothing is ever summed over time. Figures that
cannot be are clamped and flagged.

Here is what meters have in common; :class:`~extproc.exchange.meter_stream.StreamMeter` reads server-sent events,
:class:`~extproc.exchange.meter_answer.AnswerMeter` a JSON answer, :class:`OpaqueMeter` what cannot be read.
"""

from __future__ import annotations

from typing import Any, Protocol

import msgspec
from msgspec import structs

from extproc.exchange.ask import Echo, Endpoint
from extproc.money.hold import EndReason
from extproc.money.usage import CHARACTERS_PER_TOKEN_MAX, TOKENS_MAX, Usage, UsageSource
from extproc.tokens.counter import Counter

_NO_ECHO = Echo(0, 0)
REASONS = {"stop": EndReason.STOP, "tool_calls": EndReason.STOP, "function_call": EndReason.STOP, "length": EndReason.LENGTH}


class Expected(msgspec.Struct, frozen=True, kw_only=True):
    """What the ask says about its answer. ``prompt``: our own count of the prompt, for when nobody else says; and what nobody else can
    say of it (images, seconds, characters).

    ``…_tokens_max``: more than that the model cannot use, over all prompts and choices. ``output_tokens_held``: what was asked for at most.
    ``echoes``: what its choices repeat of their prompts before their output; none if they do not.
    ``choices``: over all ``prompts``. ``trust_usage`` False: the model's figures are not to be relied on (catalog, ``usage: counted``).
    ``hide_final``: withhold the usage event that we asked for and the client did not. ``hide_running``: likewise per-chunk usage.
    ``needs_text``: characters or words of the answer are priced, so its text is counted whatever its usage says.
    ``rename``: (name in the answer, name that the client asked for), both as JSON, or ``None``. ``tells_cost``: in the last usage of a
    stream that the client gets to see.
    """

    endpoint: Endpoint
    counter: Counter | None
    prompt: Usage
    input_tokens_max: int
    output_tokens_max: int
    output_tokens_held: int
    choices: int
    prompts: int = 1
    echoes: tuple[Echo, ...] = ()
    trust_usage: bool = True
    needs_text: bool = False
    hide_final: bool = False
    hide_running: bool = False
    rename: tuple[bytes, bytes] | None = None
    tells_cost: bool = False

    def echo(self, choice: int) -> Echo:
        """Of this choice: vLLM numbers them over all prompts, choice = prompt × n + i. Indexes are the backend's, and may be anything."""
        return self.echoes[choice * self.prompts // self.choices] if 0 <= choice < self.choices else _NO_ECHO


class Meter(Protocol):
    """What the machine knows of any meter."""

    @property
    def started(self) -> bool:
        """Output has been seen."""

    @property
    def events(self) -> int:
        """Pieces with output that were delivered."""

    def feed(self, chunk: bytes, *, end_of_stream: bool) -> bytes:
        """What the client gets for this chunk: mostly the chunk itself."""

    @property
    def complete(self) -> bool:
        """Final usage or ``[DONE]`` has been seen: nothing that can follow changes the bill."""

    def priced(self, shown: bytes, cost_nanos: int) -> bytes:
        """The last thing that :meth:`feed` has returned, with the cost where it is to be told."""

    def usage(self, *, ended_early: bool) -> Usage:
        """The best figures so far."""

    def reason(self) -> EndReason | None:
        """Why the backend says that it ended; ``None`` = it did not say."""


class OpaqueMeter:
    """An answer that cannot be read (a backend that compresses although nobody asked it to): the worst case, flagged.

    ``length_bytes``: as its header says, -1 = it does not. With the last of them a client has everything, whenever the end is told.
    """

    __slots__ = ("_ended", "_expected", "_left_bytes", "events")

    def __init__(self, expected: Expected, *, length_bytes: int = -1) -> None:
        self._expected = expected
        self._left_bytes = length_bytes
        self._ended = False
        self.events = 0

    @property
    def started(self) -> bool:
        return self.events > 0

    @property
    def complete(self) -> bool:
        return self._ended

    def feed(self, chunk: bytes, *, end_of_stream: bool) -> bytes:
        """Unchanged."""
        self.events += 1
        self._left_bytes -= len(chunk)
        self._ended = end_of_stream or self._left_bytes == 0
        return chunk

    def priced(self, shown: bytes, cost_nanos: int) -> bytes:
        """Unchanged."""
        del cost_nanos
        return shown

    def usage(self, *, ended_early: bool) -> Usage:
        """Everything that was held for."""
        del ended_early
        return unreadable(self._expected)

    def reason(self) -> EndReason | None:
        """Nobody can tell."""
        return EndReason.STOP if self._ended else None


def counted(expected: Expected, output_tokens: int, source: UsageSource, told: Any = None) -> Usage:
    """Our own figures, within what was held for. ``told``: a usage object without its output; the prompt is as that says, if it does.

    (Some backends say 0 until they know.)
    """
    usage = structs.replace(
        expected.prompt,
        input_tokens=min(expected.prompt.input_tokens, expected.input_tokens_max),
        output_tokens=min(output_tokens, expected.output_tokens_held),
        source=source,
    )
    begun = expected.endpoint.usage(told, source, expected, usage.output_tokens) if told else None
    if begun is None or not begun.input_tokens:
        return usage
    return structs.replace(
        usage,
        input_tokens=begun.input_tokens,
        cached_tokens=begun.cached_tokens,
        cache_creation_tokens=begun.cache_creation_tokens,
        flags=begun.flags,
    )


def unreadable(expected: Expected) -> Usage:
    """Everything that was held for: nobody can say what of it came."""
    usage = counted(expected, expected.output_tokens_held, UsageSource.CHUNKS)
    return with_units(structs.replace(usage, flags=(*usage.flags, "unreadable")), expected, TOKENS_MAX, TOKENS_MAX)


def with_units(usage: Usage, expected: Expected, characters: int, words: int) -> Usage:
    """The same with what no backend tells: units of the prompt, and of an answer with so much text.

    What a backend does tell of images and sound stands; else images have at most what our count of the text leaves of its input. Text is
    counted within what was held for it.
    """
    prompt = expected.prompt
    if prompt.is_ordinary and not expected.needs_text:
        return usage
    seen = min(prompt.image_tokens, max(0, usage.input_tokens - (prompt.input_tokens - prompt.image_tokens)))
    image = min(usage.image_tokens or seen, usage.input_tokens)
    return structs.replace(
        usage,
        image_tokens=image,
        audio_tokens=min(usage.audio_tokens or prompt.audio_tokens, usage.input_tokens - image),
        images=prompt.images,
        audio_ms=usage.audio_ms or prompt.audio_ms,
        input_characters=prompt.input_characters,
        input_words=prompt.input_words,
        output_characters=min(characters, CHARACTERS_PER_TOKEN_MAX * usage.output_tokens) if expected.needs_text else 0,
        output_words=min(words, usage.output_tokens) if expected.needs_text else 0,
    )


class UsageReader:
    """Reads members of a usage object. 0 is a figure, ``None`` is none; what cannot be is clamped, and flagged."""

    __slots__ = ("flags",)

    def __init__(self) -> None:
        self.flags: list[str] = []

    def __call__(self, members: Any, name: str, most: int) -> int | None:
        value = members.get(name) if isinstance(members, dict) else None
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int):
            self.flags.append(f"{name}_not_a_number")
            return None
        if not 0 <= value <= most:
            self.flags.append(f"{name}_impossible")
            return min(max(value, 0), most)
        return value


def renamed(raw: bytes, rename: tuple[bytes, bytes] | None) -> bytes:
    """The model's name as the client asked for it. A quoted key cannot stand unescaped inside a JSON string, so bytes are enough."""
    if rename is None:
        return raw
    served, asked = rename
    for gap in (b"", b" "):
        raw = raw.replace(b'"model":' + gap + served, b'"model":' + gap + asked, 1)
    return raw
