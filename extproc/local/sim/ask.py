"""What a client asks for, read as laxly and refused as strictly as vLLM does."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from extproc.local.sim.http import json_bytes
from extproc.local.sim.steering import TOKENS_DEFAULT, Steering
from extproc.local.sim.text import IMAGE_TOKENS, TOOLS_PREAMBLE_TOKENS, Text

CHOICES_MAX = 16_384
"""``n`` of one request."""

PROMPTS_MAX = 4_096
"""Of one /v1/completions request: enough for any test."""

COMPLETIONS_TOKENS_DEFAULT = 16
"""``max_tokens`` of /v1/completions where the client names none (OpenAI's, and vLLM's)."""

_TRUE = frozenset(("true", "1", "yes", "on", "t", "y"))
_FALSE = frozenset(("false", "0", "no", "off", "f", "n"))


class Refused(Exception):
    """An HTTP error of vLLM's shape."""

    def __init__(self, status: int, message: str, *, kind: str = "BadRequestError", param: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.kind = kind
        self.param = param

    def body(self) -> bytes:
        return error_json(self.status, self.message, kind=self.kind, param=self.param)


def error_json(status: int, message: str, *, kind: str, param: str | None = None) -> bytes:
    """The error object of vLLM."""
    return json_bytes({"error": {"message": message, "type": kind, "param": param, "code": status}})


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """What the server was started with."""

    names: tuple[str, ...]
    context_tokens: int
    force_include_usage: bool = False
    prompt_tokens_details: bool = False
    stream_interval: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """A request that will be served. ``prompt_tokens``: one number per prompt; choices = prompts × n."""

    model: str
    stream: bool
    n: int
    prompt_tokens: tuple[int, ...]
    tokens: int
    """To be generated, per choice."""
    finish_reason: str
    include_usage: bool
    continuous_usage: bool
    stream_interval: int
    include_reasoning: bool

    @property
    def choices(self) -> int:
        return self.n * len(self.prompt_tokens)


def read_body(body: bytes) -> dict[str, Any]:
    """The JSON object; of doubled keys the last wins."""
    try:
        fields = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise Refused(400, f"[{{'type': 'json_invalid', 'msg': 'JSON decode error', 'ctx': {{'error': '{error}'}}}}]") from error
    if not isinstance(fields, dict):
        raise Refused(400, "[{'type': 'model_attributes_type', 'msg': 'Input should be a valid dictionary'}]")
    return fields


def ask_of_chat(fields: dict[str, Any], model: Model, steering: Steering, text: Text) -> Ask:
    """Raises :class:`Refused`."""
    messages = fields.get("messages")
    if not isinstance(messages, list) or not messages:
        raise Refused(400, "[{'type': 'missing', 'loc': ('body', 'messages'), 'msg': 'Field required'}]", param="messages")
    texts, images = _messages(messages)
    prompt = text.count_chat(texts) + images * IMAGE_TOKENS
    if tools := fields.get("tools"):
        prompt += TOOLS_PREAMBLE_TOKENS + text.count(json_bytes(tools).decode())
    limit = _integer(fields, "max_completion_tokens", least=1)
    if limit is None:
        limit = _integer(fields, "max_tokens", least=1)
    return _ask(fields, model, steering, (prompt,), limit)


def ask_of_completions(fields: dict[str, Any], model: Model, steering: Steering, text: Text) -> Ask:
    """Raises :class:`Refused`."""
    limit = _integer(fields, "max_tokens", least=0)
    return _ask(fields, model, steering, _prompts(fields.get("prompt"), text), COMPLETIONS_TOKENS_DEFAULT if limit is None else limit)


def model_name(fields: dict[str, Any], model: Model) -> str:
    """A missing model is served by the first one. Raises :class:`Refused` (404) for one that is not served."""
    name = fields.get("model")
    if name is None:
        return model.names[0]
    if name not in model.names:
        raise Refused(404, f"The model `{name}` does not exist.", kind="NotFoundError", param="model")
    return str(name)


def _ask(fields: dict[str, Any], model: Model, steering: Steering, prompts: tuple[int, ...], limit: int | None) -> Ask:
    name = model_name(fields, model)
    longest = max(prompts)
    if longest >= model.context_tokens:
        raise Refused(
            400, f"This model's maximum context length is {model.context_tokens} tokens. However, your request has {longest} input tokens."
        )
    room = model.context_tokens - longest
    if limit is not None and limit > room:
        raise Refused(
            400,
            f"'max_tokens' or 'max_completion_tokens' is too large: {limit}. This model's maximum context length is "
            f"{model.context_tokens} tokens and your request has {longest} input tokens.",
            param="max_tokens",
        )
    most = room if limit is None else limit
    wanted = most if _flag(fields, "ignore_eos") and limit is not None else TOKENS_DEFAULT
    tokens = min(most, wanted if steering.tokens is None else steering.tokens)
    stream = _flag(fields, "stream")
    include_usage, continuous = _stream_options(fields, model, stream=stream)
    n = _integer(fields, "n", least=1) or 1
    if n > CHOICES_MAX:
        raise Refused(400, f"n must be at most {CHOICES_MAX}", param="n")
    return Ask(
        model=name,
        stream=stream,
        n=n,
        prompt_tokens=prompts,
        tokens=tokens,
        finish_reason="length" if tokens == most else "stop",
        include_usage=include_usage,
        continuous_usage=continuous,
        stream_interval=_integer(fields, "stream_interval", least=1) or model.stream_interval,
        include_reasoning=_flag(fields, "include_reasoning", default=True),
    )


def _stream_options(fields: dict[str, Any], model: Model, *, stream: bool) -> tuple[bool, bool]:
    """include_usage, and continuous_usage_stats (only together with it)."""
    options = fields.get("stream_options")
    if options is not None and not isinstance(options, dict):
        raise Refused(400, "stream_options must be an object", param="stream_options")
    if options and not stream:
        raise Refused(400, "Stream options can only be defined when `stream=True`.", param="stream_options")
    if model.force_include_usage:
        return True, True
    include = bool(options) and _flag(options or {}, "include_usage")
    return include, include and _flag(options or {}, "continuous_usage_stats")


def _messages(messages: Sequence[Any]) -> tuple[list[tuple[str, str]], int]:
    """(role, text) of each message, and the number of images."""
    texts: list[tuple[str, str]] = []
    images = 0
    for message in messages:
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            raise Refused(400, "[{'type': 'missing', 'loc': ('body', 'messages', 'role'), 'msg': 'Field required'}]", param="messages")
        content = message.get("content") or ""
        parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
        if not isinstance(parts, list) or not all(isinstance(part, dict) for part in parts):
            raise Refused(400, "content must be a string or a list of parts", param="messages")
        texts.append((message["role"], "\n".join(str(part["text"]) for part in parts if "text" in part)))
        images += sum(1 for part in parts if "image_url" in part)
    return texts, images


def _prompts(prompt: Any, text: Text) -> tuple[int, ...]:
    """Tokens of each prompt: a string, token ids, or a list of either."""
    if isinstance(prompt, str):
        return (text.count(prompt),)
    if not isinstance(prompt, list) or not prompt or len(prompt) > PROMPTS_MAX:
        raise Refused(400, "Either prompt or prompt_embeds must be provided and non-empty.", param="prompt")
    if all(isinstance(token, int) for token in prompt):
        return (len(prompt),)
    if all(isinstance(one, str) for one in prompt):
        return tuple(text.count(one) for one in prompt)
    if all(isinstance(one, list) and all(isinstance(token, int) for token in one) for one in prompt):
        return tuple(len(one) for one in prompt)
    raise Refused(400, "prompt must be a string, a list of strings, token ids, or a list of token ids", param="prompt")


def _integer(fields: dict[str, Any], name: str, *, least: int) -> int | None:
    """As pydantic reads it: 3, 3.0 and "3" are the same; booleans count as numbers."""
    value = fields.get(name)
    if value is None:
        return None
    try:
        number = int(value.strip()) if isinstance(value, str) else int(value)
        whole = isinstance(value, str) or number == value
    except (TypeError, ValueError, OverflowError):
        whole, number = False, 0
    if not whole:
        raise Refused(400, f"[{{'type': 'int_parsing', 'loc': ('body', '{name}'), 'msg': 'Input should be a valid integer'}}]", param=name)
    if number < least:
        raise Refused(400, f"{name} must be at least {least}, got {number}.", param=name)
    return number


def _flag(fields: dict[str, Any], name: str, *, default: bool = False) -> bool:
    """As pydantic reads it: true, 1, "true", "1", "yes", "on"."""
    value = fields.get(name)
    if value is None:
        return default
    if isinstance(value, bool):
        return value
    word = str(value).lower() if isinstance(value, str | int) else ""
    if word in _TRUE or word in _FALSE:
        return word in _TRUE
    raise Refused(400, f"[{{'type': 'bool_parsing', 'loc': ('body', '{name}'), 'msg': 'Input should be a valid boolean'}}]", param=name)
