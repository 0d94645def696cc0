"""``POST /v1/messages``: everything about it. Anthropic's way to chat: what a cache had, or took, is told beside the input."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from extproc.errors import ClientError
from extproc.exchange.actions import Answer
from extproc.exchange.ask import NOTHING, Ask, Piece, Prompt
from extproc.exchange.endpoints import fields as read
from extproc.exchange.endpoints import openai
from extproc.exchange.endpoints.tooling import Tooling
from extproc.exchange.meter import Expected, UsageReader
from extproc.exchange.replies import CUT_MESSAGE
from extproc.money.usage import Usage, UsageSource

SIGNATURE_CHARS_MAX = 65_536  # of a thought, as an earlier answer had it
ROLES = ("user", "assistant", "system")

_OWN = frozenset({"model", "messages", "system", "tools", "max_tokens", "stream"})
_KNOWN = frozenset({"temperature", "top_p", "top_k", "stop_sequences", "thinking", "tool_choice", "output_config"})
_INPUTS = ("input_tokens", "cache_read_input_tokens", "cache_creation_input_tokens")
_FINISHES = {"end_turn": "stop", "tool_use": "stop", "max_tokens": "length", "model_context_window_exceeded": "length"}
_ERRORS = {
    400: "invalid_request_error",
    401: "authentication_error",
    402: "billing_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
}
_CUT = {"type": "error", "error": {"type": "overloaded_error", "message": CUT_MESSAGE}}
_MEDIA = ("image/png", "image/jpeg", "image/gif", "image/webp")


class Messages(openai.Usual):
    """What Anthropic's SDK speaks."""

    name = "messages"
    paths: tuple[str, ...] = ("/v1/messages",)
    has_stream_options = False
    cut_event = b"\n\nevent: error\ndata: " + msgspec.json.encode(_CUT) + b"\n\n"

    def refusal(self, answer: Answer) -> Answer:
        """See :class:`~extproc.exchange.ask.Endpoint`. Its SDK tells errors apart by their status; their types are Anthropic's."""
        error = msgspec.json.decode(answer.body)["error"]
        is_unpaid = error["code"] == "insufficient_quota"  # whatever status the policy has for it
        error["type"] = "billing_error" if is_unpaid else _ERRORS.get(answer.status, "invalid_request_error")
        body = {"type": "error", "error": {name: value for name, value in error.items() if value is not None}}
        return msgspec.structs.replace(answer, body=msgspec.json.encode(body))

    def parse(self, body: Mapping[str, Any], *, reject_unknown: bool) -> Ask:
        """See :class:`~extproc.exchange.ask.Endpoint`."""
        fields, prompt = conversation(body, _KNOWN, reject_unknown=reject_unknown)
        read.check_stop(body, "stop_sequences")
        output_max = read.output_max(body, "max_tokens")
        if output_max is None:
            raise ClientError("`max_tokens` must be given.", param="max_tokens", code="missing_required_parameter")
        return Ask(
            endpoint=self,
            model=read.model_name(body),
            stream=read.truth(body, "stream"),
            output_max=output_max,
            prompt=prompt,
            fields=fields,
        )

    def usage(self, raw: Any, source: UsageSource, expected: Expected, output_tokens: int | None = None) -> Usage | None:
        """See :class:`~extproc.exchange.ask.Endpoint`. Of an input that nobody told, our own count."""
        figure, most = UsageReader(), expected.input_tokens_max
        told = [figure(raw, name, most) for name in _INPUTS]
        output = figure(raw, "output_tokens", expected.output_tokens_max)
        output = output_tokens if output is None else output
        if output is None:
            return None
        fresh, cached, creation = (value or 0 for value in told)
        if told[0] is None:
            fresh = max(0, expected.prompt.input_tokens - cached - creation)
            figure.flags += expected.prompt.flags
        if fresh + cached + creation > most:
            figure.flags.append("input_tokens_impossible")
        total = min(fresh + cached + creation, most)
        return Usage(
            input_tokens=total,
            cached_tokens=cached,
            cache_creation_tokens=min(creation, total - cached),
            output_tokens=output,
            source=source,
            flags=tuple(dict.fromkeys(figure.flags)),
        )

    def read_event(self, data: bytes) -> Piece:
        """See :class:`~extproc.exchange.ask.Endpoint`."""
        event = openai.decoded(_EVENT, data)
        if event is None:
            return NOTHING
        if event.error is not None or event.type == "error":
            return Piece(error=True)
        said = {"content_block_delta": event.delta, "content_block_start": event.content_block}.get(str(event.type))
        if isinstance(said, dict):
            return Piece(texts=tuple((0, text) for text in _texts_of(said)))
        if event.type == "message_start" and isinstance(event.message, dict):
            usage = event.message.get("usage")
            return Piece(begun={name: usage[name] for name in _INPUTS if name in usage}) if isinstance(usage, dict) else NOTHING
        if event.type == "message_delta":
            reason = event.delta.get("stop_reason") if isinstance(event.delta, dict) else None
            return Piece(usage=event.usage, final=_is_final(event.usage, reason), finish=_finish(reason))
        return Piece(done=True) if event.type == "message_stop" else NOTHING

    def read_answer(self, body: bytes) -> Piece:
        """See :class:`~extproc.exchange.ask.Endpoint`."""
        answer = openai.decoded(_ANSWER, body)
        if answer is None:
            return NOTHING
        blocks = [block for block in answer.content if isinstance(block, dict)] if isinstance(answer.content, list) else []
        return Piece(
            texts=tuple((0, text) for block in blocks for text in _texts_of(block)),
            usage=answer.usage,
            final=True,
            finish=_finish(answer.stop_reason),
            error=answer.error is not None,
        )


class _Event(msgspec.Struct, gc=False):
    type: Any = None
    message: Any = None
    content_block: Any = None
    delta: Any = None
    usage: Any = None
    error: Any = None


class _Answer(msgspec.Struct, gc=False):
    content: Any = None
    stop_reason: Any = None
    usage: Any = None
    error: Any = None


_EVENT = msgspec.json.Decoder(_Event)
_ANSWER = msgspec.json.Decoder(_Answer)


def _texts_of(block: Mapping[str, Any]) -> list[str]:
    """What a model generated of a block, or of its next piece: text, thoughts, or a call."""
    found = [block.get(name) for name in ("text", "thinking", "partial_json", "name")]
    call = block.get("input")
    if call:
        found.append(msgspec.json.encode(call).decode())
    return [text for text in found if isinstance(text, str) and text]


def _finish(reason: Any) -> str:
    return _FINISHES.get(reason, reason) if isinstance(reason, str) else ""


def _is_final(usage: Any, reason: Any) -> bool:
    """Without a reason to stop the message may go on; vLLM has none for an answer that it aborted."""
    return isinstance(usage, dict) and usage.get("output_tokens") is not None and reason is not None


# the request


def conversation(body: Mapping[str, Any], known: frozenset[str], *, reject_unknown: bool) -> tuple[dict[str, Any], Prompt]:
    """System, messages and tools as they are forwarded, and what of them is to be counted. What is not counted is not forwarded."""
    fields = read.allowed(body, known, _OWN, reject_unknown=reject_unknown)
    gathered = _Gathered()
    system = body.get("system")
    if system is not None:
        fields["system"] = gathered.system(system)
    messages = read.turns(body.get("messages"), "messages")
    fields["messages"] = [gathered.message(message, f"messages[{position}]") for position, message in enumerate(messages)]
    tools = body.get("tools")
    if tools is not None:
        fields["tools"] = gathered.tools(tools)
    return fields, gathered.prompt()


class _Gathered:
    """What of a conversation is to be counted, while it is read."""

    def __init__(self) -> None:
        self._messages: list[tuple[str, str]] = []
        self._tooling = Tooling()
        self._calls: list[tuple[str, dict[str, Any], Any]] = []  # of the message that is read: name, input, and all of it
        self._images: list[str] = []

    def prompt(self) -> Prompt:
        """All of it."""
        return self._tooling.prompt(self._messages, self._images)

    def system(self, system: Any) -> Any:
        """A text, or blocks of text."""
        texts: list[str] = []
        blocks = self._blocks(system, "system", texts, ("text",))
        self._messages.append(("system", "".join(texts)))
        return blocks

    def tools(self, tools: Any) -> list[dict[str, Any]]:
        """Those that the client runs. What runs at the backend would generate again and again, beyond what is held for."""
        if not isinstance(tools, list):
            raise ClientError("`tools` must be a list.", param="tools", code="invalid_type")
        found = []
        for position, tool in enumerate(tools):
            param = f"tools[{position}]"
            if not isinstance(tool, dict) or tool.get("type", "custom") != "custom" or not isinstance(tool.get("input_schema"), dict):
                words = f"`{param}` has no `input_schema`; only tools that the client runs are offered here."
                raise ClientError(words, param=param, code="unsupported_parameter")
            described = {"name": read.string(tool.get("name"), f"{param}.name")}
            if tool.get("description") is not None:
                described["description"] = read.string(tool["description"], f"{param}.description")
            function = described | {"parameters": {**tool["input_schema"], "type": tool["input_schema"].get("type", "object")}}
            self._tooling.function(function, {"type": "function", "function": function})
            found.append(described | {"input_schema": tool["input_schema"]} | _cache_control(tool, param))
        return found

    def message(self, message: Any, param: str) -> dict[str, Any]:
        """One message. Results of tools become messages of their own at the backend, and are counted as such."""
        role = message.get("role") if isinstance(message, dict) else None
        if role not in ROLES:
            raise ClientError(f"`{param}` must be an object with a role of {', '.join(ROLES)}.", param=param, code="invalid_type")
        texts: list[str] = []
        content = self._blocks(message.get("content"), f"{param}.content", texts, tuple(_BLOCKS))
        if isinstance(content, str) or any(block["type"] != "tool_result" for block in content):
            for name, given, printed in self._calls:
                if role == "assistant":
                    self._tooling.call(len(self._messages), name, given, printed)
                else:
                    self._tooling.silent(printed)
            self._calls.clear()
            self._messages.append((role, "\n".join(texts)))
        return {"role": role, "content": content}

    def _blocks(self, content: Any, param: str, texts: list[str], kinds: tuple[str, ...]) -> Any:
        """A string, or blocks of these kinds, as they are forwarded; their texts are added to ``texts``."""
        if isinstance(content, str):
            texts.append(content)
            return content
        if not isinstance(content, list):
            raise ClientError(f"`{param}` must be a string or a list of blocks.", param=param, code="invalid_type")
        blocks = []
        for position, block in enumerate(content):
            at = f"{param}[{position}]"
            kind = block.get("type") if isinstance(block, dict) else None
            if kind not in kinds:
                raise ClientError(f"`{at}` must be a block of type {', '.join(kinds)}.", param=at, code="invalid_value")
            blocks.append({"type": kind, **_BLOCKS[kind](self, block, at, texts), **_cache_control(block, at)})
        return blocks

    def text(self, block: Mapping[str, Any], param: str, texts: list[str]) -> dict[str, Any]:
        texts.append(read.string(block.get("text"), f"{param}.text"))
        return {"text": block["text"]}

    def thinking(self, block: Mapping[str, Any], param: str, texts: list[str]) -> dict[str, Any]:
        texts.append(read.string(block.get("thinking"), f"{param}.thinking"))
        self._tooling.odd("thinking")  # dropped by a template, or framed
        signature = read.string(block.get("signature") or "", f"{param}.signature", chars_max=SIGNATURE_CHARS_MAX)
        return {"thinking": block["thinking"], "signature": signature}

    def image(self, block: Mapping[str, Any], param: str, texts: list[str]) -> dict[str, Any]:
        del texts
        source = block.get("source")
        kind = source.get("type") if isinstance(source, dict) else None
        if isinstance(source, dict) and kind == "url":
            image = read.image(source.get("url"), f"{param}.source.url")
            forwarded = {"type": kind, "url": image}
        elif isinstance(source, dict) and kind == "base64" and source.get("media_type") in _MEDIA:
            image = read.string(source.get("data"), f"{param}.source.data")
            forwarded = {"type": kind, "media_type": source["media_type"], "data": image}
        else:
            words = f"`{param}.source` must be of type url, or base64 with a media_type of {', '.join(_MEDIA)}."
            raise ClientError(words, param=f"{param}.source", code="invalid_value")
        self._images.append(image)
        return {"source": forwarded}

    def tool_use(self, block: Mapping[str, Any], param: str, texts: list[str]) -> dict[str, Any]:
        del texts
        name, call_id = read.string(block.get("name"), f"{param}.name"), _id(block, "id", param)
        given = block.get("input")
        if not isinstance(given, dict):
            raise ClientError(f"`{param}.input` must be an object.", param=f"{param}.input", code="invalid_type")
        self._calls.append((name, given, {"type": "function", "id": call_id, "function": {"name": name, "arguments": given}}))
        return {"id": call_id, "name": name, "input": given}

    def tool_result(self, block: Mapping[str, Any], param: str, texts: list[str]) -> dict[str, Any]:
        del texts
        found: list[str] = []
        content = self._blocks(block.get("content") or "", f"{param}.content", found, ("text", "image"))
        self._tooling.result()
        self._messages.append(("tool", "\n".join(found)))
        call_id = _id(block, "tool_use_id", param)
        self._tooling.silent(call_id)
        result = {"tool_use_id": call_id, "content": content}
        return {**result, "is_error": True} if block.get("is_error") is True else result


_BLOCKS = {
    "text": _Gathered.text,
    "image": _Gathered.image,
    "thinking": _Gathered.thinking,
    "tool_use": _Gathered.tool_use,
    "tool_result": _Gathered.tool_result,
}


def _cache_control(block: Mapping[str, Any], param: str) -> dict[str, Any]:
    """What a backend is to write to its cache; the hold covers it, whatever it costs."""
    control = block.get("cache_control")
    if control is None:
        return {}
    if not isinstance(control, dict) or control.get("type") != "ephemeral" or control.get("ttl") not in (None, "5m", "1h"):
        raise ClientError(f"`{param}.cache_control` must be of type ephemeral.", param=f"{param}.cache_control", code="invalid_value")
    return {"cache_control": {name: control[name] for name in ("type", "ttl") if name in control}}


def _id(block: Mapping[str, Any], name: str, param: str) -> str:
    return read.string(block.get(name), f"{param}.{name}", chars_max=read.ID_CHARS_MAX)
