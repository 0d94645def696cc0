"""Bodies, read as laxly and refused as strictly as by vLLM: what the endpoints have in common."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from extproc.local.sim.ask import Ask, Model, Refused
from extproc.local.sim.images import image_of
from extproc.local.sim.prompt import Filler, Prompt
from extproc.local.sim.speech import CALL_TOKENS
from extproc.local.sim.steering import TOKENS_DEFAULT, Steering

CHOICES_MAX = 16_384
"""``n`` of one request."""

CALLS_MAX = 16
"""Of tools in one answer: enough for any test."""

_TRUE = frozenset(("true", "1", "yes", "on", "t", "y"))
_FALSE = frozenset(("false", "0", "no", "off", "f", "n"))


def read_body(body: bytes) -> dict[str, Any]:
    """The JSON object; of doubled keys the last wins."""
    try:
        fields = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise Refused(400, f"[{{'type': 'json_invalid', 'msg': 'JSON decode error', 'ctx': {{'error': '{error}'}}}}]") from error
    if not isinstance(fields, dict):
        raise Refused(400, "[{'type': 'model_attributes_type', 'msg': 'Input should be a valid dictionary'}]")
    return fields


def model_name(fields: Mapping[str, Any], model: Model) -> str:
    """A missing model is served by the first one. Raises :class:`Refused` (404) for one that is not served."""
    name = fields.get("model")
    if name is None:
        return model.names[0]
    if name not in model.names:
        raise Refused(404, f"The model `{name}` does not exist.", kind="NotFoundError", param="model")
    return str(name)


def generating(
    fields: Mapping[str, Any],
    model: Model,
    steering: Steering,
    prompts: Sequence[Prompt],
    limit: int | None,
    *,
    usage: tuple[bool, bool],
    n: int = 1,
    **more: Any,
) -> Ask:
    """An answer that is made. ``usage``: whether it is told, and with every event. ``more``: members of :class:`Ask`."""
    name = model_name(fields, model)
    room = model.context_tokens - _longest(prompts, model)
    if limit is not None and limit > room:
        raise Refused(
            400,
            f"'max_tokens' or 'max_completion_tokens' is too large: {limit}. This model's maximum context length is "
            f"{model.context_tokens} tokens and your request has {model.context_tokens - room} input tokens.",
            param="max_tokens",
        )
    most = room if limit is None else limit
    calls = more.get("calls", ())
    wanted = most if flag(fields, "ignore_eos") and limit is not None else TOKENS_DEFAULT
    wanted = max(wanted if steering.tokens is None else steering.tokens, CALL_TOKENS * len(calls))
    tokens = min(most, wanted)
    return Ask(
        model=name,
        prompts=tuple(prompts),
        n=n,
        limit=most,
        tokens=tokens,
        finish_reason="length" if tokens == most else "tool_calls" if calls else "stop",
        include_usage=usage[0],
        continuous_usage=usage[1],
        stream_interval=integer(fields, "stream_interval", least=1) or model.stream_interval,
        **common(fields),
        **more,
    )


def reading(fields: Mapping[str, Any], model: Model, prompts: Sequence[Prompt], **more: Any) -> Ask:
    """An answer for which nothing is generated: embeddings, scores."""
    name = model_name(fields, model)
    _longest(prompts, model)
    return Ask(model=name, prompts=tuple(prompts), **common(fields), **more)


def common(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Members of :class:`Ask` that every endpoint reads alike."""
    salt, request_id = fields.get("cache_salt"), fields.get("request_id")
    if salt is not None and (not isinstance(salt, str) or not salt):
        raise Refused(400, "Parameter 'cache_salt' must be a non-empty string if provided.", param="cache_salt")
    return {
        "priority": integer(fields, "priority", least=None) or 0,
        "cache_salt": salt or "",
        "request_id": request_id if isinstance(request_id, str) else None,
        "fields": fields,
    }


def _longest(prompts: Sequence[Prompt], model: Model) -> int:
    longest = max(prompt.tokens for prompt in prompts)
    if longest >= model.context_tokens:
        raise Refused(
            400, f"This model's maximum context length is {model.context_tokens} tokens. However, your request has {longest} input tokens."
        )
    return longest


def choices_of(fields: Mapping[str, Any]) -> int:
    """The member ``n``."""
    n = integer(fields, "n", least=1) or 1
    if n > CHOICES_MAX:
        raise Refused(400, f"n must be at most {CHOICES_MAX}", param="n")
    return n


def stream_options(fields: Mapping[str, Any], model: Model, *, stream: bool) -> tuple[bool, bool]:
    """include_usage, and continuous_usage_stats (only together with it)."""
    options = fields.get("stream_options")
    if options is not None and not isinstance(options, dict):
        raise Refused(400, "stream_options must be an object", param="stream_options")
    if options and not stream:
        raise Refused(400, "Stream options can only be defined when `stream=True`.", param="stream_options")
    if model.force_include_usage:
        return True, True
    include = bool(options) and flag(options or {}, "include_usage")
    return include, include and flag(options or {}, "continuous_usage_stats")


def calls_of(names: Sequence[str], steering: Steering, *, choice: Any) -> tuple[str, ...]:
    """The functions that an answer calls. ``choice``: a function's name, ``True``: any must, ``False``: none may, ``None``: as it likes."""
    if not names or choice is False:
        return ()
    if isinstance(choice, str):
        if choice not in names:
            raise Refused(400, f"The tool `{choice}` of `tool_choice` is not among `tools`.", param="tool_choice")
        return (choice,) * max(1, steering.tool_calls)
    wanted = max(int(choice is True), steering.tool_calls)
    return tuple(names[number % len(names)] for number in range(min(wanted, CALLS_MAX)))


def image(url: Any, steering: Steering) -> Filler:
    """An image of a prompt: a data URL, or any other."""
    try:
        return image_of(str(url), fetched_size=steering.image_size)
    except ValueError as error:
        raise Refused(400, f"Failed to load image: {error}", param="messages") from error


def integer(fields: Mapping[str, Any], name: str, *, least: int | None) -> int | None:
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
    if least is not None and number < least:
        raise Refused(400, f"{name} must be at least {least}, got {number}.", param=name)
    return number


def flag(fields: Mapping[str, Any], name: str, *, default: bool = False) -> bool:
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
