"""POST /v1/chat/completions, as vLLM reads and writes it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from extproc.local.sim import fields as read
from extproc.local.sim.ask import Ask, Model, Refused, error_json, missing
from extproc.local.sim.http import json_bytes
from extproc.local.sim.prompt import Filler, Message, Prompt, prompt_of_chat
from extproc.local.sim.shape import DONE, Output, texts_of
from extproc.local.sim.speech import REASONING, TEXT, Item, Kind
from extproc.local.sim.steering import Steering
from extproc.local.sim.text import Text
from extproc.local.sim.tools import Call
from extproc.local.sim.usage import Spent, usage_of_chunks


def ask_of_chat(fields: Mapping[str, Any], model: Model, steering: Steering, text: Text) -> Ask:
    """Raises :class:`Refused`."""
    stream = read.flag(fields, "stream")
    limit = read.integer(fields, "max_completion_tokens", least=1)
    if limit is None:
        limit = read.integer(fields, "max_tokens", least=1)
    return read.generating(
        fields,
        model,
        steering,
        [prompt_of_fields(fields, steering, text)],
        limit,
        n=read.choices_of(fields),
        stream=stream,
        usage=read.stream_options(fields, model, stream=stream),
        include_reasoning=read.flag(fields, "include_reasoning", default=True),
        calls=read.calls_of(_names(fields.get("tools") or []), steering, choice=_forced(fields.get("tool_choice"))),
    )


def prompt_of_fields(fields: Mapping[str, Any], steering: Steering, text: Text) -> Prompt:
    """Of the members ``messages`` and ``tools``. Raises :class:`Refused`."""
    messages = fields.get("messages")
    if not isinstance(messages, list) or not messages:
        raise missing("messages")
    tools = fields.get("tools") or []
    functions = [tool.get("function") or {} for tool in tools if isinstance(tool, dict)] if isinstance(tools, list) else []
    return prompt_of_chat([_message(one, steering) for one in messages], functions, text)


def _message(message: Any, steering: Steering) -> Message:
    if not isinstance(message, dict) or not isinstance(message.get("role"), str):
        raise missing("messages', 'role")
    content = message.get("content") or ""
    parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
    if not isinstance(parts, list) or not all(isinstance(part, dict) for part in parts):
        raise Refused(400, "content must be a string or a list of parts", param="messages")
    texts = [str(part["text"]) for part in parts if "text" in part]
    calls = tuple(_calls(message)) if message["role"] == "assistant" else ()
    return Message(role=message["role"], text="\n".join(texts), calls=calls, images=tuple(_images(parts, steering)))


def _calls(message: Mapping[str, Any]) -> Iterable[Call]:
    for call in message.get("tool_calls") or []:
        if not isinstance(call, dict) or not isinstance(function := call.get("function"), dict):
            raise Refused(400, "chat completions only support assistant tool_calls of type 'function'.", param="tool_calls")
        yield Call(str(function.get("name")), function.get("arguments"))


def _images(parts: Sequence[Mapping[str, Any]], steering: Steering) -> Iterable[Filler]:
    for part in parts:
        if (image := part.get("image_url")) is not None:
            yield read.image(image.get("url") if isinstance(image, dict) else image, steering)


def _names(tools: Any) -> list[str]:
    if not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools):
        raise Refused(400, "tools must be a list of objects", param="tools")
    functions = (tool.get("function") for tool in tools)
    return [str(function["name"]) for function in functions if isinstance(function, dict) and "name" in function]


def _forced(choice: Any) -> str | bool | None:
    """See ``calls_of``."""
    if isinstance(choice, dict) and isinstance(function := choice.get("function"), dict):
        return str(function.get("name"))
    return {"required": True, "none": False}.get(choice) if isinstance(choice, str) else None


class ChatShape:
    """Of one request."""

    end = DONE

    def __init__(self, request_id: str, created: int, model_json: bytes, ask: Ask | None = None) -> None:
        del ask
        self._id = request_id.encode()
        self._members = b'"id":"chatcmpl-%b","object":"chat.completion%%b","created":%d,"model":%b' % (self._id, created, model_json)
        self._event = b"data: {%b" % (self._members % b".chunk")
        self._heads: dict[int, bytes] = {}

    def opening(self, choice: int, usage: bytes) -> Iterable[bytes]:
        delta = b'{"role":"assistant","content":""}'
        yield b'%b,"choices":[{"index":%d,"delta":%b,"logprobs":null,"finish_reason":null}]%b}\n\n' % (self._event, choice, delta, usage)

    def begin(self, choice: int, item: Item, usage: bytes) -> Iterable[bytes]:
        """A function's name comes before its arguments."""
        self._heads[choice] = self._head(choice, item)
        if item.kind is Kind.CALL:
            call = b'{"id":"%b","type":"function","index":%d,"function":{"name":%b}}' % (
                self._call_id(choice, item),
                item.number,
                json_bytes(item.name),
            )
            yield b'%b,"choices":[{"index":%d,"delta":{"tool_calls":[%b]},"logprobs":null,"finish_reason":null}]%b}\n\n' % (
                self._event,
                choice,
                call,
                usage,
            )

    def said(self, choice: int, item: Item, text: bytes, usage: bytes) -> bytes:
        if item.kind is Kind.CALL:
            return b'%b%b"}}]},"logprobs":null,"finish_reason":null,"token_ids":null}]%b}\n\n' % (self._heads[choice], text, usage)
        return b'%b%b"},"logprobs":null,"finish_reason":null,"token_ids":null}]%b}\n\n' % (self._heads[choice], text, usage)

    def finish(self, choice: int, reason: str, usage: bytes) -> Iterable[bytes]:
        delta = b'"delta":{"content":""},"logprobs":null,"finish_reason":"%b","stop_reason":null,"token_ids":null' % reason.encode()
        yield b'%b,"choices":[{"index":%d,%b}]%b}\n\n' % (self._event, choice, delta, usage)

    def final(self, reason: str, usage: bytes | None) -> Iterable[bytes]:
        del reason
        if usage is not None:
            yield b'%b,"choices":[],"usage":%b}\n\n' % (self._event, usage)

    def died(self, message: str) -> Iterable[bytes]:
        yield b"data: %b\n\n" % error_json(500, message, kind="InternalServerError")

    def usage(self, spent: Spent, wrong: str | None) -> bytes:
        return usage_of_chunks(spent, wrong)

    def document(self, outputs: Sequence[Output], reason: str, usage: bytes | None) -> bytes:
        choices = b",".join(
            b'{"index":%d,"message":{"role":"assistant","content":%b,"refusal":null,"annotations":null,"audio":null,"function_call":null,'
            b'"tool_calls":[%b],"reasoning":%b},"logprobs":null,"finish_reason":"%b","stop_reason":null,"token_ids":null}'
            % (
                index,
                b"null" if (calls := self._calls(index, output)) else b'"%b"' % texts_of(output, TEXT),
                calls,
                b'"%b"' % reasoning if (reasoning := texts_of(output, REASONING)) else b"null",
                reason.encode(),
            )
            for index, output in enumerate(outputs)
        )
        return b'{%b,"choices":[%b],"service_tier":null,"system_fingerprint":null%b,"prompt_logprobs":null,"kv_transfer_params":null}' % (
            self._members % b"",
            choices,
            b"" if usage is None else b',"usage":%b' % usage,
        )

    def _head(self, choice: int, item: Item) -> bytes:
        member = {Kind.TEXT: b'"content":"', Kind.REASONING: b'"reasoning":"'}.get(item.kind)
        if member is None:
            member = b'"tool_calls":[{"index":%d,"function":{"arguments":"' % item.number
        return b'%b,"choices":[{"index":%d,"delta":{%b' % (self._event, choice, member)

    def _calls(self, choice: int, output: Output) -> bytes:
        return b",".join(
            b'{"id":"%b","type":"function","function":{"name":%b,"arguments":"%b"}}'
            % (self._call_id(choice, item), json_bytes(item.name), text)
            for item, text in output
            if item.kind is Kind.CALL
        )

    def _call_id(self, choice: int, item: Item) -> bytes:
        return b"chatcmpl-tool-%b-%d-%d" % (self._id, choice, item.number)
