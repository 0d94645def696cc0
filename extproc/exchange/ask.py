"""What a client asks for, once its body has been understood; and what an endpoint must know how to do.

An endpoint is one file under ``endpoints/``: how its body is parsed, how large its prompt is, how its answer is read. The machine
and the meter know this protocol only.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import msgspec

from extproc.money.usage import CHARACTERS_PER_TOKEN_MAX, Usage, UsageSource
from extproc.tokens.counter import Counter, Tools

if TYPE_CHECKING:
    from extproc.exchange.actions import Answer
    from extproc.exchange.meter import Expected

JSON = "application/json"

# A message costs at most these beside its text, over every template that we know; and a prompt as a whole.
# Part of the hold only ("template allowance" of MONEY.md): what is charged is what the backend counted.
ALLOWANCE_TOKENS = 16
ALLOWANCE_TOKENS_PER_MESSAGE = 4
# Templates introduce tools with a text of their own (Qwen's: 100 to 250 tokens), and print their JSON at one token a byte at most.
ALLOWANCE_TOKENS_TOOLS = 256
CALL_BYTES = 64  # a call of the tokenizer costs about as much as so many bytes of text
BYTES_PER_TOKEN = 4  # of an estimate: English and JSON have about this many


class Prompt(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """What will be read by the model. Either ``messages`` (role, content) or ``texts``, one for each prompt.

    ``shared``: a text that every prompt begins with (the query of documents). ``param``: the member of the body that it came in.
    ``images``: each as a data URL, as base64 alone, or as a URL to be fetched. ``audio_ms``: of what is to be transcribed, at most;
    ``audio_ms_likely``: what it has if nobody says (the same, if the file tells). ``prompts``: how many, each with a context window of
    its own; ``tokens_each``: what a backend adds to each by itself, at most. ``token_ids``: tokens that came as ids. ``tools``: of a
    conversation that has any. ``extra_bytes``: JSON of tools and of message fields that templates print, compact; ``extra_bytes_max``:
    printed as widely as any template does; ``odd_bytes``: of what is not in ``tools``, and printed by some templates only.
    ``is_truncated``: the backend cuts what is longer than its window.
    """

    param: str = "messages"
    messages: tuple[tuple[str, str], ...] = ()
    texts: tuple[str, ...] = ()
    shared: str = ""
    token_ids: int = 0
    tools: Tools | None = None
    extra_bytes: int = 0
    extra_bytes_max: int = 0
    odd_bytes: int = 0
    prompts: int = 1
    tokens_each: int = 2  # the beginning and the end of a text
    images: tuple[str, ...] = ()
    audio_ms: int = 0
    audio_ms_likely: int = 0
    is_truncated: bool = False
    text_bytes: int = 0  # worked out, whatever is said: what is to be read, ``shared`` once

    def __post_init__(self) -> None:
        size = sum([_utf8_bytes(text) for text in self.texts]) + sum([_utf8_bytes(content) for _, content in self.messages])
        msgspec.structs.force_setattr(self, "text_bytes", size + _utf8_bytes(self.shared))

    def count(self, counter: Counter) -> int:
        """Tokens as the backend will count them; odd fields, and tools in some templates, are estimated (:meth:`is_exact`)."""
        tokens = self.beside_text
        if self.messages:
            tokens += counter.count_chat(self.messages, self.tools)
        if self.shared:
            tokens += counter.count(self.shared) * self.prompts
        return tokens + sum(counter.count(text) for text in self.texts)

    def bound(self, counter: Counter | None) -> int:
        """An upper bound from sizes alone. Without a vocabulary: three tokens a byte cover every byte-level BPE under NFC."""
        repeated = _utf8_bytes(self.shared) * (self.prompts - 1)
        if counter is None:
            around = 16 * (len(self.messages) + 1) + self.tokens_each * self.prompts
            return self.token_ids + self.extra_bound + 3 * (self.text_bytes + repeated) + around
        tokens = self.token_ids + self.extra_bound
        if self.messages:
            tokens += counter.bound_chat(self.text_bytes, len(self.messages))
        else:
            tokens += self.tokens_each * self.prompts
        if self.shared:
            tokens += counter.bound(_utf8_bytes(self.shared)) * self.prompts
        return tokens + sum(counter.bound(_utf8_bytes(text)) for text in self.texts)

    def estimate(self) -> int:
        """When nothing better is known and a bound would be unfair."""
        repeated = _utf8_bytes(self.shared) * (self.prompts - 1)
        return self.token_ids + (self.text_bytes + repeated + self.extra_bytes) // BYTES_PER_TOKEN

    def characters_and_words(self) -> tuple[int, int]:
        """Of everything that is text, as prices count them (:class:`~extproc.money.usage.Usage`); a token that came as an id is a word."""
        shared = self.shared, self.prompts
        texts = [shared, *((text, 1) for text in self.texts), *((content, 1) for _, content in self.messages)]
        characters = sum(len(text) * times for text, times in texts) + CHARACTERS_PER_TOKEN_MAX * self.token_ids
        return characters + self.extra_bytes, sum(len(text.split()) * times for text, times in texts) + self.token_ids

    def read_bytes(self, counter: Counter | None) -> int:
        """What is to be counted, at most: some templates that are only estimated print tools on many lines."""
        printed = self.extra_bytes if counter is None or counter.prints_tools else self.extra_bytes_max
        return self.text_bytes + printed

    def work_bytes(self, counter: Counter) -> int:
        """What counting costs, in bytes of one long text: every message and every prompt is a call of the tokenizer."""
        return self.read_bytes(counter) + CALL_BYTES * (len(self.messages) + len(self.texts))

    def is_exact(self, counter: Counter | None) -> bool:
        """:meth:`count` (without a counter: what a server of the model tells) is what the backend counts, but for a template that differs
        from the catalog's.
        """
        return not self.odd_bytes and (self.tools is None or counter is None or counter.prints_tools)

    @property
    def beside_text(self) -> int:
        """Tokens that came as ids, and an estimate of odd message fields."""
        return self.token_ids + self.odd_bytes // BYTES_PER_TOKEN

    @property
    def extra_bound(self) -> int:
        """The most that tools and odd message fields can add."""
        return self.extra_bytes_max + ALLOWANCE_TOKENS_TOOLS if self.extra_bytes else 0

    def allowance(self, counter: Counter | None) -> int:
        """What is held beyond the count. A sister of the template may print tools that were counted in other words, twice as long."""
        around = ALLOWANCE_TOKENS + ALLOWANCE_TOKENS_PER_MESSAGE * len(self.messages)
        if self.extra_bytes and self.is_exact(counter):
            return around + ALLOWANCE_TOKENS_TOOLS + self.extra_bytes // BYTES_PER_TOKEN
        return around + self.extra_bound


class Echo(NamedTuple):
    """How an answer begins that repeats its prompt: with the ``characters`` of a text, or the ``tokens`` of a prompt that came as ids."""

    characters: int
    tokens: int


class Ask(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """A parsed body. ``choices`` = n × prompts; ``output_max`` per choice, ``None`` if the client named none.

    ``wants_…usage``: in its stream, and in every chunk; True where that is never asked for, and always there.
    ``fields`` are the members that may go to the backend; what the bill depends on is typed, the rest is for the backend to judge.
    ``echoes``: what answers repeat of their prompts before their output, if they do: one for each prompt. ``content_type`` of the
    canonical body.
    """

    endpoint: Endpoint
    model: str
    prompt: Prompt
    fields: Mapping[str, Any]
    stream: bool = False
    choices: int = 1
    output_max: int | None = None
    wants_usage: bool = True
    wants_continuous_usage: bool = True
    echoes: tuple[Echo, ...] = ()
    content_type: str = JSON

    @property
    def is_free(self) -> bool:
        """Nothing is held and nothing charged, whatever the model costs (counting tokens)."""
        return not self.endpoint.is_listed


class Piece(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """What one event of an answer says. ``texts``: (choice, text) that the model generated, hidden reasoning and tools included.

    ``tokens``: (choice, tokens that log-probabilities tell of, whether or not their text has come: a long stop string makes a backend
    keep text back). ``index``: the choice that the event is about (an event of a stream has one). ``final``: a usage object that stands
    for the whole answer. ``begun``: what was told of the usage before there was output (Anthropic's ``message_start``); a final usage
    overrides its members. ``finish``: a finish reason, if one came; ``done``: nothing of the answer can follow.
    """

    texts: tuple[tuple[int, str], ...] = ()
    tokens: tuple[tuple[int, int], ...] = ()
    index: int = 0
    usage: Any = None
    final: bool = False
    begun: Any = None
    done: bool = False
    finish: str = ""
    error: bool = False


NOTHING = Piece()


def _utf8_bytes(text: str) -> int:
    return len(text) if text.isascii() else len(text.encode("utf-8", "replace"))


class Endpoint(Protocol):
    """One way to ask: everything about it in one file."""

    name: str
    is_form: bool  # its bodies are forms, not JSON
    is_listed: bool  # the catalog lists it for the models that serve it; otherwise it goes with every model, and costs nothing
    output_default: int | None  # the maximum of this endpoint when the client names none; None = the model's, 0 = it has no output

    @property
    def paths(self) -> tuple[str, ...]:
        """Each of them leads here, and to the same path of a backend."""

    cut_event: bytes  # what a stream ends with that we have to cut

    def refusal(self, answer: Answer) -> Answer:
        """An error of ours, which has OpenAI's shape, in the shape that its clients understand."""

    def members(self, data: bytes, content_type: str) -> Mapping[str, Any]:
        """The bytes of a body as members: a JSON object, or a form."""

    def parse(self, body: Mapping[str, Any], *, reject_unknown: bool) -> Ask:
        """The body, typed and allow-listed. :class:`~extproc.errors.ClientError` names the parameter at fault."""

    def canonical(self, ask: Ask, *, served_name: str, output_max: int, usage: bool, continuous: bool) -> bytes:
        """The body that is forwarded: only fields that we know, with what we held for."""

    def read_event(self, data: bytes) -> Piece:
        """One SSE event. Never raises: what cannot be understood says nothing."""

    def read_answer(self, body: bytes) -> Piece:
        """A whole JSON answer, or as much of it as arrived."""

    def usage(self, raw: Any, source: UsageSource, expected: Expected, output_tokens: int | None = None) -> Usage | None:
        """Its usage object → tokens. 0 is a figure; what cannot be is clamped and flagged.

        ``None``: it has no figures, or none of the output, if ``output_tokens`` does not say what that was.
        """
