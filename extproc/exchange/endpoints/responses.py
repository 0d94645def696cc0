"""``POST /v1/responses``: everything about it. Clients send whole conversations: what only a backend remembers nobody can hold for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from extproc.errors import ClientError
from extproc.exchange.ask import NOTHING, Ask, Piece, Prompt
from extproc.exchange.endpoints import fields as read
from extproc.exchange.endpoints import openai
from extproc.exchange.endpoints.tooling import Tooling
from extproc.exchange.meter import Expected
from extproc.exchange.replies import CUT_ERROR
from extproc.money.usage import Usage, UsageSource

ROLES = ("user", "assistant", "system", "developer")

_OWN = frozenset({"model", "input", "instructions", "tools", "stream", "stream_options", "max_output_tokens"})
_KNOWN = frozenset(
    {
        *("temperature", "top_p", "top_k", "seed", "stop", "repetition_penalty", "ignore_eos", "logit_bias", "skip_special_tokens"),
        *("include_stop_str_in_output", "structured_outputs", "text", "reasoning", "truncation", "include", "top_logprobs"),
        *("max_tool_calls", "parallel_tool_calls", "tool_choice"),
    }
)
# They bring in what only the backend has seen, or let it go on when nobody holds for it any more.
_NOT_OFFERED = ("previous_response_id", "conversation", "prompt", "background")
_LABELS = ("id", "status", "call_id")  # of items: not read by a model
_NAMES = openai.Names(
    input="input_tokens", output="output_tokens", input_details="input_tokens_details", output_details="output_tokens_details"
)
_ENDS = frozenset({"response.completed", "response.incomplete", "response.failed", "response.cancelled"})
_FINISHES = {"cancelled": "abort", "failed": "abort"}
_DETAILS = ("auto", "low", "high")
# An event of the protocol, and an error that OpenAI's SDK raises.
_CUT = {**CUT_ERROR, "type": "error", "error": CUT_ERROR}


class Responses(openai.Usual):
    """OpenAI's newer way to chat: items in, items out, every event of a stream with a name and a number."""

    name = "responses"
    paths = ("/v1/responses",)
    limit = "max_output_tokens"
    has_stream_options = False
    cut_event = b"\n\nevent: error\ndata: " + msgspec.json.encode(_CUT) + b"\n\n"

    def parse(self, body: Mapping[str, Any], *, reject_unknown: bool) -> Ask:
        """See :class:`~extproc.exchange.ask.Endpoint`."""
        for name in _NOT_OFFERED:
            if body.get(name):
                words = f"`{name}` is not offered here: send the whole conversation as `input`, and wait for the answer."
                raise ClientError(words, param=name, code="unsupported_parameter")
        fields = read.allowed(body, _KNOWN, _OWN | set(_NOT_OFFERED), reject_unknown=reject_unknown)
        read.check_stop(body)
        tools = _tools(body.get("tools"))
        if tools:
            fields["tools"] = tools
        gathered = _Gathered()
        instructions = body.get("instructions")
        if instructions is not None:
            fields["instructions"] = gathered.say("system", read.string(instructions, "instructions"))
        fields["input"] = gathered.input(body.get("input"))
        fields["store"] = False  # what a backend remembers, another one does not know
        stream, _, _ = read.stream_options(body)
        return Ask(
            endpoint=self,
            model=read.model_name(body),
            stream=stream,
            output_max=read.output_max(body, "max_output_tokens"),
            prompt=gathered.prompt(tools),
            fields=fields,
        )

    def usage(self, raw: Any, source: UsageSource, expected: Expected, output_tokens: int | None = None) -> Usage | None:
        """See :class:`~extproc.exchange.ask.Endpoint`."""
        return openai.usage_of(raw, source, expected, _NAMES, output_tokens=output_tokens)

    def read_event(self, data: bytes) -> Piece:
        """See :class:`~extproc.exchange.ask.Endpoint`. Events that end something repeat all of its text: that is no output."""
        event = openai.decoded(_EVENT, data)
        if event is None:
            return NOTHING
        kind = event.type if isinstance(event.type, str) else ""
        if kind.endswith(".delta") and isinstance(event.delta, str):
            logprobs = event.logprobs
            tokens = ((0, len(logprobs)),) if isinstance(logprobs, list) and logprobs else ()
            return Piece(texts=((0, event.delta),) if event.delta else (), tokens=tokens)
        if kind == "response.output_item.added" and isinstance(event.item, dict):
            name = event.item.get("name")
            return Piece(texts=((0, name),)) if isinstance(name, str) and name else NOTHING
        if kind in _ENDS and isinstance(event.response, dict):
            return _end(event.response)
        return Piece(error=True) if event.error is not None or kind == "error" else NOTHING

    def read_answer(self, body: bytes) -> Piece:
        """See :class:`~extproc.exchange.ask.Endpoint`."""
        answer = openai.decoded(_ANSWER, body)
        if answer is None:
            return NOTHING
        texts = tuple((0, text) for item in _dicts(answer.output) for text in _texts_of(item))
        return msgspec.structs.replace(_end(msgspec.structs.asdict(answer)), texts=texts)


class _Event(msgspec.Struct, gc=False):
    type: Any = None
    delta: Any = None
    logprobs: Any = None
    item: Any = None
    response: Any = None
    error: Any = None


class _Answer(msgspec.Struct, gc=False):
    output: Any = None
    status: Any = None
    incomplete_details: Any = None
    usage: Any = None
    error: Any = None


_EVENT = msgspec.json.Decoder(_Event)
_ANSWER = msgspec.json.Decoder(_Answer)


def _end(response: Mapping[str, Any]) -> Piece:
    """What a response says when it is over. A stream that was cut by length may still call it completed (VLLM.md)."""
    usage, status, details = response.get("usage"), response.get("status"), response.get("incomplete_details")
    why = details.get("reason") if isinstance(details, dict) else None
    finish = _FINISHES.get(status, "stop") if isinstance(status, str) else ""
    if status == "incomplete":
        finish = "stop" if why == "content_filter" else "length"
    is_error = response.get("error") is not None or status == "failed"
    return Piece(usage=usage, final=usage is not None, done=True, finish=finish, error=is_error)


def _texts_of(item: Mapping[str, Any]) -> list[str]:
    """What a model generated of an item: text, reasoning, or a call."""
    parts = [*_dicts(item.get("content")), *_dicts(item.get("summary"))]
    found = [part.get("text") or part.get("refusal") for part in parts] + [item.get(name) for name in ("name", "arguments", "input")]
    return [text for text in found if isinstance(text, str) and text]


def _dicts(value: Any) -> list[dict[str, Any]]:
    return [entry for entry in value if isinstance(entry, dict)] if isinstance(value, list) else []


# the request


class _Gathered:
    """What of a conversation is to be counted, while it is read. What is not counted is not forwarded."""

    def __init__(self) -> None:
        self._messages: list[tuple[str, str]] = []
        self._tooling = Tooling()
        self._images: list[str] = []

    def prompt(self, tools: list[dict[str, Any]]) -> Prompt:
        """All of it, and the tools as templates print them."""
        for tool in tools:
            described = {name: value for name, value in tool.items() if name != "type"}
            self._tooling.function(described, {"type": "function", "function": described})
        return self._tooling.prompt(self._messages, self._images, param="input")

    def say(self, role: str, text: str) -> str:
        """A message that is a text."""
        self._messages.append((role, text))
        return text

    def input(self, value: Any) -> Any:
        """A text of the user, or items."""
        if isinstance(value, str):
            return self.say("user", value)
        items = read.turns(value, "input", "a string, or a list with at least one item")
        return [self._item(item, f"input[{position}]") for position, item in enumerate(items)]

    def _item(self, item: Any, param: str) -> dict[str, Any]:
        if not isinstance(item, dict):
            raise ClientError(f"`{param}` must be an object.", param=param, code="invalid_type")
        kind = item.get("type") or "message"
        read_item = _ITEMS.get(kind) if isinstance(kind, str) else None
        if read_item is None:
            words = f"`{param}` is of type {str(kind)[:64]!r}; this endpoint takes messages, reasoning, function calls and their outputs."
            raise ClientError(words, param=f"{param}.type", code="invalid_value")
        labels = {
            name: read.string(item[name], f"{param}.{name}", chars_max=read.ID_CHARS_MAX) for name in _LABELS if item.get(name) is not None
        }
        return {"type": kind, **labels, **read_item(self, item, param)}

    def message(self, item: Mapping[str, Any], param: str) -> dict[str, Any]:
        role = item.get("role")
        if role not in ROLES:
            raise ClientError(f"`{param}.role` must be one of {', '.join(ROLES)}.", param=f"{param}.role", code="invalid_value")
        return {"role": role, "content": self._content(role, item.get("content"), f"{param}.content")}

    def call(self, item: Mapping[str, Any], param: str) -> dict[str, Any]:
        call = {name: read.string(item.get(name), f"{param}.{name}") for name in ("name", "arguments")}
        if not self._messages or self._messages[-1][0] != "assistant":  # else it is that message's: so vLLM reads it
            self.say("assistant", "")
        printed = {"type": "function", "id": item.get("call_id"), "function": call}
        self._tooling.call(len(self._messages) - 1, call["name"], call["arguments"], printed)
        return call

    def output(self, item: Mapping[str, Any], param: str) -> dict[str, Any]:
        self._tooling.result()
        self._tooling.silent(item.get("call_id"))
        return {"output": self._content("tool", item.get("output"), f"{param}.output")}

    def reasoning(self, item: Mapping[str, Any], param: str) -> dict[str, Any]:
        """Its text. What is encrypted nobody here can read, and no backend of ours has written it."""
        content = _text_parts(item, "content", param, "reasoning_text")
        summary = _text_parts(item, "summary", param, "summary_text")
        self.say("assistant", "".join(part["text"] for part in content + summary))
        self._tooling.odd("reasoning")  # dropped by a template, or framed
        return {"summary": summary, "content": content} if content else {"summary": summary}

    def _content(self, role: str, content: Any, param: str) -> Any:
        if isinstance(content, str):
            return self.say(role, content)
        if not isinstance(content, list):
            raise ClientError(f"`{param}` must be a string or a list of parts.", param=param, code="invalid_type")
        parts, texts = [], []
        for part in content:
            kind = part.get("type") if isinstance(part, dict) else None
            if kind == "input_image":
                parts.append(self._image(part, param))
                continue
            name = _TEXTS.get(kind, "") if isinstance(kind, str) else ""
            text = part.get(name) if name else None
            if not isinstance(text, str):
                words = f"`{param}` has a part that is neither text nor image."
                raise ClientError(words, param=param, code="invalid_value")
            parts.append({"type": kind, name: text, "annotations": []} if kind == "output_text" else {"type": kind, name: text})
            texts.append(text)
        self.say(role, "\n".join(texts))
        return parts

    def _image(self, part: Mapping[str, Any], param: str) -> dict[str, Any]:
        url = read.image(part.get("image_url"), f"{param}.image_url")
        self._images.append(url)
        detail = part.get("detail")
        return {"type": "input_image", "image_url": url, "detail": detail if detail in _DETAILS else "auto"}


_ITEMS = {
    "message": _Gathered.message,
    "function_call": _Gathered.call,
    "function_call_output": _Gathered.output,
    "reasoning": _Gathered.reasoning,
}
_TEXTS = {"input_text": "text", "output_text": "text", "text": "text", "refusal": "refusal"}  # type of a part → member with its text


def _tools(tools: Any) -> list[dict[str, Any]]:
    """Functions. What runs at the backend (search, code, MCP) would generate again and again, beyond what is held for."""
    if tools is None:
        return []
    if not isinstance(tools, list):
        raise ClientError("`tools` must be a list.", param="tools", code="invalid_type")
    found = []
    for position, tool in enumerate(tools):
        param = f"tools[{position}]"
        if not isinstance(tool, dict) or tool.get("type") != "function":
            raise ClientError(f"`{param}` is no function; only functions are offered here.", param=param, code="unsupported_parameter")
        name = read.string(tool.get("name"), f"{param}.name")
        rest = {member: tool[member] for member in ("description", "parameters", "strict") if member in tool}
        found.append({"type": "function", "name": name, "parameters": None, "strict": None} | rest)
    return found


def _text_parts(item: Mapping[str, Any], name: str, param: str, kind: str) -> list[dict[str, str]]:
    parts, param = item.get(name) or [], f"{param}.{name}"
    if not isinstance(parts, list):
        raise ClientError(f"`{param}` must be a list.", param=param, code="invalid_type")
    return [{"type": kind, "text": read.string(part.get("text") if isinstance(part, dict) else None, param)} for part in parts]
