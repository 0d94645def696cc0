"""How OpenAI's endpoints speak, as most of ours do: their bodies, errors, usage and answers."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, NamedTuple, TypeVar

import msgspec

from extproc.exchange.actions import Answer
from extproc.exchange.ask import NOTHING, Ask, Piece
from extproc.exchange.endpoints.fields import canonical, json_object
from extproc.exchange.meter import Expected, UsageReader
from extproc.exchange.replies import CUT_EVENT
from extproc.money.usage import Usage, UsageSource


class Usual:
    """What an endpoint does that says nothing else. ``limit``: the member with the maximum of output tokens.

    ``has_stream_options``: its streams tell their usage to who asks for it; else to everybody.
    """

    is_form = False
    is_listed = True
    output_default: int | None = None
    limit = "max_tokens"
    has_stream_options = True
    cut_event = CUT_EVENT

    def refusal(self, answer: Answer) -> Answer:
        """See :class:`~extproc.exchange.ask.Endpoint`."""
        return answer

    def members(self, data: bytes, content_type: str) -> Mapping[str, Any]:
        """See :class:`~extproc.exchange.ask.Endpoint`."""
        del content_type
        return json_object(data)

    def canonical(self, ask: Ask, *, served_name: str, output_max: int, usage: bool, continuous: bool) -> bytes:
        """See :class:`~extproc.exchange.ask.Endpoint`."""
        own = {"model": served_name} if self.output_default == 0 else {"model": served_name, self.limit: output_max}
        is_told = self.has_stream_options
        return canonical(ask.fields, own, stream=ask.stream, usage=usage and is_told, continuous=continuous and is_told)

    def usage(self, raw: Any, source: UsageSource, expected: Expected, output_tokens: int | None = None) -> Usage | None:
        """See :class:`~extproc.exchange.ask.Endpoint`."""
        return usage_of(raw, source, expected, output_tokens=output_tokens)

    def read_event(self, data: bytes) -> Piece:
        """See :class:`~extproc.exchange.ask.Endpoint`."""
        return read(data, whole_answer=False)

    def read_answer(self, body: bytes) -> Piece:
        """See :class:`~extproc.exchange.ask.Endpoint`."""
        return read(body, whole_answer=True)


class Names(NamedTuple):
    """What OpenAI calls the members of a usage object: it has two sets of names."""

    input: str
    output: str
    input_details: str
    output_details: str


_CHAT = Names(
    input="prompt_tokens", output="completion_tokens", input_details="prompt_tokens_details", output_details="completion_tokens_details"
)


def usage_of(raw: Any, source: UsageSource, expected: Expected, names: Names = _CHAT, *, output_tokens: int | None = None) -> Usage | None:
    """OpenAI's usage object → a usage. See :class:`~extproc.exchange.ask.Endpoint`."""
    if not isinstance(raw, dict):
        return None
    figure = UsageReader()
    prompt = figure(raw, names.input, expected.input_tokens_max)
    output = figure(raw, names.output, expected.output_tokens_max)
    output = output_tokens if output is None else output
    if prompt is None or output is None:
        return None
    details = raw.get(names.input_details)
    cached = creation = image = audio = 0
    if isinstance(details, dict):
        cached = figure(details, "cached_tokens", prompt) or 0
        written = "created_cache_tokens" if "created_cache_tokens" in details else "cache_write_tokens"  # vLLM's chat; its responses
        creation = figure(details, written, prompt - cached) or 0
        seen = details.get("multimodal_tokens")  # vLLM's; others have them one by one
        image = figure(details, "image_tokens", prompt) or figure(seen, "image", prompt) or 0
        audio = figure(details, "audio_tokens", prompt - image) or figure(seen, "audio", prompt - image) or 0
    reasoning = figure(raw.get(names.output_details), "reasoning_tokens", output) or 0
    return Usage(
        input_tokens=prompt,
        cached_tokens=cached,
        cache_creation_tokens=creation,
        image_tokens=image,
        audio_tokens=audio,
        output_tokens=output,
        reasoning_tokens=reasoning,
        source=source,
        flags=tuple(figure.flags),
    )


T = TypeVar("T")


def decoded(decoder: msgspec.json.Decoder[T], data: bytes) -> T | None:
    """A JSON object as a struct whose members may be of any type; ``None`` if it is none. Never raises.

    What is strict about msgspec must not make us miss a usage or an error: lone surrogates and bytes that are no UTF-8 are replaced.
    """
    if not data.startswith(b"{"):
        return None
    try:
        return decoder.decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        pass
    try:
        forgiven = json.dumps(json.loads(data.decode("utf-8", "replace")), ensure_ascii=False)
        return decoder.decode(forgiven.encode("utf-8", "replace"))
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return None


class _Function(msgspec.Struct, gc=False):
    name: str | None = None
    arguments: str | None = None


class _ToolCall(msgspec.Struct, gc=False):
    function: _Function | None = None


class _Said(msgspec.Struct, gc=False):
    content: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    tool_calls: list[_ToolCall] | None = None


class _Logprobs(msgspec.Struct, gc=False):
    content: list[msgspec.Raw] | None = None  # chat
    tokens: list[msgspec.Raw] | None = None  # completions


class _Choice(msgspec.Struct, gc=False):
    index: int = 0
    logprobs: _Logprobs | None = None
    delta: _Said | None = None
    message: _Said | None = None
    text: str | None = None
    finish_reason: str | None = None


class _Answer(msgspec.Struct, gc=False):
    choices: list[_Choice] | None = None
    usage: Any = None
    error: Any = None


_DECODER = msgspec.json.Decoder(_Answer)


def read(data: bytes, *, whole_answer: bool) -> Piece:
    """A stream event or a whole answer → a piece. What is not JSON of this shape says nothing, and raises nothing."""
    answer = _decode(data)
    if answer is None:
        return NOTHING
    if answer.error is not None:
        return Piece(error=True, usage=answer.usage)
    texts: list[tuple[int, str]] = []
    tokens: list[tuple[int, int]] = []
    finish, index = "", 0
    for choice in answer.choices or ():
        index = choice.index
        finish = choice.finish_reason or finish
        if choice.text:
            texts.append((choice.index, choice.text))
        if choice.logprobs is not None:
            tokens.append((choice.index, max(len(choice.logprobs.content or ()), len(choice.logprobs.tokens or ()))))
        said = choice.delta or choice.message
        if said is not None:
            _collect(said, choice.index, texts)
    final = answer.usage is not None and (whole_answer or not answer.choices)
    return Piece(texts=tuple(texts), tokens=tuple(tokens), index=index, usage=answer.usage, final=final, finish=finish)


def _collect(said: _Said, index: int, texts: list[tuple[int, str]]) -> None:
    # vLLM sends reasoning under one of two names, never under both.
    reasoning = said.reasoning_content or said.reasoning
    if reasoning:
        texts.append((index, reasoning))
    if said.content:
        texts.append((index, said.content))
    for call in said.tool_calls or ():
        if call.function is not None:
            texts.extend((index, text) for text in (call.function.name, call.function.arguments) if text)


def _decode(data: bytes) -> _Answer | None:
    if not data.startswith(b"{"):
        return None
    try:
        return _DECODER.decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        pass
    # Slow and forgiving: lone surrogates, members of a type that we did not expect. Usage and error must not be missed for these.
    try:
        raw = json.loads(data.decode("utf-8", "replace"))
        return _answer_of(raw) if isinstance(raw, dict) else None
    except (ValueError, RecursionError):
        return None


def _answer_of(raw: dict[str, Any]) -> _Answer:
    choices = []
    members = raw.get("choices")
    for position, member in enumerate(members if isinstance(members, list) else ()):
        if not isinstance(member, dict):
            continue
        index = member.get("index")
        said = member.get("delta") or member.get("message")
        said = said if isinstance(said, dict) else {}
        contents = [said.get(name) for name in ("reasoning_content", "reasoning", "content")] + [member.get("text")]
        text = "".join(value for value in contents if isinstance(value, str))
        finish = member.get("finish_reason")
        choices.append(
            _Choice(
                index=index if isinstance(index, int) else position,
                text=text.encode("utf-8", "replace").decode(),
                finish_reason=finish if isinstance(finish, str) else None,
            )
        )
    return _Answer(choices=choices, usage=raw.get("usage"), error=raw.get("error"))
