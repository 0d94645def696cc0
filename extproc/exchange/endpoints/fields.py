"""What the bodies of all endpoints have in common: JSON or nothing, lenient numbers, allow-listed members, a canonical body.

vLLM takes ``"3"`` and ``2.0`` for 3, ``"true"`` and ``1`` for true (VLLM.md); so do we, and forward plain JSON types.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

import msgspec

from extproc.errors import ClientError
from extproc.exchange.ask import Prompt
from extproc.money.usage import TOKENS_MAX
from extproc.tokens.counter import NFC_GROWTH

CHOICES_MAX = 128  # OpenAI's bound of n; vLLM would take 16,384 and bill them all
STOPS_MAX = 16
STOP_CHARS_MAX = 256
TURNS_MAX = 2_048  # messages or items: longer than any conversation; each costs a call of the tokenizer
POWER_GROWTH = 14  # of 1e15, which has 18 characters when it is printed; beyond 1e16 Python prints powers too
PROMPTS_MAX = 2_048  # texts of one request
ID_CHARS_MAX = 128  # of what names a call, an item or a message, as an earlier answer had it; some templates print it
URL_CHARS_MAX = 8_192  # of an image that a backend is to fetch
NESTING_MAX = 64  # OpenAI takes schemas of ten levels, each of which is three of JSON; and it can be written however deep our stack is
NESTS_MAX = 131_072  # lists and objects of a body: each takes 60 to 250 bytes of memory, of which three may have come, and a microsecond

# Sampling and shape of the answer: they change neither the price nor the queue.
SAMPLING_FIELDS = frozenset(
    {
        *("temperature", "top_p", "top_k", "min_p", "seed", "stop", "stop_token_ids", "bad_words", "ignore_eos", "min_tokens"),
        *("repetition_penalty", "presence_penalty", "frequency_penalty", "length_penalty", "logit_bias", "allowed_token_ids"),
        *("logprobs", "return_tokens_as_token_ids", "skip_special_tokens", "spaces_between_special_tokens"),
        *("include_stop_str_in_output", "response_format", "structured_outputs"),
    }
)
# Known, and without meaning for the backend: dropped under both policies.
IGNORED_FIELDS = frozenset(
    {"user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key", "verbosity"},
)


_NESTS = frozenset({dict, list})
_ASCII = bytes(range(128))
_EXPONENTS = re.compile(rb"e[-0-9]")  # of 1e-7 and 1e16, which Python, so a template, prints as 1e-07 and 1e+16; or of a text, to no harm
_POWERS = re.compile(r"[eE][-+]?[0-9]")
_WHOLE = re.compile(r"\s{0,8}[+-]?[0-9]{1,18}\s{0,8}", re.ASCII)


def json_object(data: bytes) -> dict[str, Any]:
    """Strict JSON (RFC 8259): UTF-8, no NaN; of doubled keys the last wins, and only that one is forwarded.

    Nobody who is handed it needs a thought for how deep it is, or of how many pieces. Brackets of texts are counted too: a prompt with so
    many fits into few windows.
    """
    opened = data.count(b"[") + data.count(b"{")
    if opened > NESTS_MAX:
        raise ClientError(f"The request body has more than {NESTS_MAX} opening brackets.", status=413, code="request_too_large")
    try:
        body = msgspec.json.decode(data)
    except RecursionError as error:
        raise _too_deep() from error
    except (msgspec.MsgspecError, UnicodeDecodeError, ValueError) as error:
        raise ClientError("The request body is not valid JSON.", code="invalid_json") from error
    if not isinstance(body, dict):
        raise ClientError("The request body must be a JSON object.", code="invalid_json")
    if opened > NESTING_MAX:
        _check_nesting(body)
    return body


def _check_nesting(value: Any) -> None:
    for depth, _ in enumerate(_levels(value)):
        if depth == NESTING_MAX:
            raise _too_deep()


def _too_deep() -> ClientError:
    return ClientError(f"The request body is nested more than {NESTING_MAX} deep.", code="invalid_json")


def _levels(value: Any) -> Iterator[list[Any]]:
    """Lists and objects by their depth, the outermost first. Deep is what a recursion ends at, so this is none."""
    level = [value] if type(value) in _NESTS else []
    while level:
        yield level
        level = [child for parent in level for child in (parent.values() if type(parent) is dict else parent) if type(child) in _NESTS]


def whole(body: Mapping[str, Any], name: str, *, low: int, high: int) -> int | None:
    """An integer member, as leniently as vLLM reads it; values above ``high`` are refused, not wrapped."""
    value = body.get(name)
    if value is None:
        return None
    if isinstance(value, str) and _WHOLE.fullmatch(value):
        value = int(value)
    if isinstance(value, float) and value.is_integer() and abs(value) < TOKENS_MAX:
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int):
        raise ClientError(f"`{name}` must be an integer.", param=name, code="invalid_type")
    if not low <= value <= high:
        raise ClientError(f"`{name}` must be between {low} and {high}.", param=name, code="invalid_value")
    return value


def truth(body: Mapping[str, Any], name: str) -> bool:
    """A boolean member, as leniently as vLLM reads it."""
    value = body.get(name)
    if value is None:
        return False
    if isinstance(value, str):
        value = {"true": True, "1": True, "yes": True, "on": True, "false": False, "0": False, "no": False, "off": False}.get(value.lower())
    if isinstance(value, float | int) and value in (0, 1):
        return bool(value)
    raise ClientError(f"`{name}` must be true or false.", param=name, code="invalid_type")


def model_name(body: Mapping[str, Any]) -> str:
    """The member ``model``; vLLM would serve a default one without it, we cannot bill that."""
    value = body.get("model")
    if not isinstance(value, str) or not value:
        raise ClientError("`model` must name a model.", param="model", code="missing_required_parameter")
    if len(value) > 256:
        raise ClientError("`model` is too long to be the name of a model.", param="model", status=404, code="model_not_found")
    return value


def stream_options(body: Mapping[str, Any]) -> tuple[bool, bool, bool]:
    """(stream, the client wants usage, on every chunk)."""
    stream = truth(body, "stream")
    options = body.get("stream_options")
    if options is None or not stream:
        return stream, False, False
    if not isinstance(options, dict):
        raise ClientError("`stream_options` must be an object.", param="stream_options", code="invalid_type")
    usage = truth(options, "include_usage")
    return stream, usage, usage and truth(options, "continuous_usage_stats")


def turns(value: Any, param: str, what: str = "a list with at least one message") -> list[Any]:
    """The messages of a conversation, or its items."""
    if not isinstance(value, list) or not value:
        raise ClientError(f"`{param}` must be {what}.", param=param, code="missing_required_parameter")
    if len(value) > TURNS_MAX:
        raise ClientError(f"`{param}` has more than {TURNS_MAX} entries.", param=param, code="invalid_value")
    return value


def prompts(value: Any, param: str) -> Prompt:
    """A text, tokens, or a list of either."""
    listed = value if isinstance(value, list) and value and not are_tokens(value) else [value]
    if len(listed) > PROMPTS_MAX:
        raise ClientError(f"`{param}` has more than {PROMPTS_MAX} prompts.", param=param, code="invalid_value")
    texts, token_ids = [], 0
    for prompt in listed:
        if isinstance(prompt, str):
            texts.append(prompt)
        elif isinstance(prompt, list) and prompt and are_tokens(prompt):
            token_ids += len(prompt)
        else:
            words = f"`{param}` must be a string, a list of strings, or lists of tokens."
            raise ClientError(words, param=param, code="missing_required_parameter")
    return Prompt(param=param, texts=tuple(texts), token_ids=token_ids, prompts=len(listed))


def are_tokens(value: list[Any]) -> bool:
    """Whether all are whole numbers."""
    # In C: half a million ids are legal, and a loop over them would stand in everybody's way. (`bool` is no `int` here.)
    return set(map(type, value)) <= {int}


def output_max(body: Mapping[str, Any], *names: str) -> int | None:
    """The first of these members that is set: the maximum of output tokens for a choice."""
    for name in names:
        value = whole(body, name, low=1, high=TOKENS_MAX)
        if value is not None:
            return value
    return None


def string(value: Any, param: str, *, chars_max: int | None = None) -> str:
    """A member that must be a string."""
    if not isinstance(value, str):
        raise ClientError(f"`{param}` must be a string.", param=param, code="invalid_type")
    if chars_max is not None and len(value) > chars_max:
        raise ClientError(f"`{param}` is longer than {chars_max} characters.", param=param, code="invalid_value")
    return value


def image(url: Any, param: str) -> str:
    """An image as a prompt has it: a data URL, or one that the backend fetches."""
    value = string(url, param)
    if value[:5].lower() == "data:":
        return value
    if len(value) > URL_CHARS_MAX or not value.lower().startswith(("https://", "http://")):
        raise ClientError(f"`{param}` must be a data URL with base64, or an https URL.", param=param, code="invalid_value")
    return value


def check_inline(prompt: Prompt) -> None:
    """What costs nothing makes no backend fetch anything."""
    if any(image[:4].lower() == "http" for image in prompt.images):
        words = "Images are not fetched to count tokens; send them as data URLs with base64."
        raise ClientError(words, param=prompt.param, code="unsupported_parameter")


def check_stop(body: Mapping[str, Any], name: str = "stop") -> None:
    """A backend keeps back as much text as its longest stop string has: a long one would let a client read nothing and owe nothing."""
    stop = body.get(name)
    strings = stop if isinstance(stop, list) else [stop]
    if stop is None:
        return
    if len(strings) > STOPS_MAX or not all(isinstance(string, str) and len(string) <= STOP_CHARS_MAX for string in strings):
        raise ClientError(
            f"`{name}` must be at most {STOPS_MAX} strings of at most {STOP_CHARS_MAX} characters.", param=name, code="invalid_value"
        )


def printed(extras: list[Any]) -> tuple[int, int]:
    """Bytes of JSON that a template prints: (compact, at most as widely as any does: Llama 3.1 indents by four, Qwen normalises to NFC)."""
    if not extras:
        return 0, 0
    compact = _ENCODER.encode(extras)
    wide = len(compact) + len(_EXPONENTS.findall(compact)) + (NFC_GROWTH - 1) * len(compact.translate(None, _ASCII))
    for depth, level in enumerate(_levels(extras)):  # a line for each element, with a blank behind its name, and one for the end
        wide += sum(map(len, level)) * (6 + 4 * depth) + sum(map(bool, level)) * (1 + 4 * depth)
    return len(compact), wide


def reprinted(text: str) -> int:
    """Bytes of JSON in a text, at most, when a backend has read it and a template prints it: with blanks, 1e15 as 1000000000000000.0."""
    size = len(text) if text.isascii() else NFC_GROWTH * len(text.encode("utf-8", "replace"))
    return size + text.count(",") + text.count(":") + POWER_GROWTH * len(_POWERS.findall(text))


def allowed(body: Mapping[str, Any], known: frozenset[str], own: frozenset[str], *, reject_unknown: bool) -> dict[str, Any]:
    """The members of ``known``; ``own`` are understood and written by us. Others are stripped, or refused by policy."""
    fields = {}
    for name, value in body.items():
        if name in known:
            if value is not None:
                fields[name] = value
        elif reject_unknown and name not in own and name not in IGNORED_FIELDS:
            raise ClientError(f"`{name[:64]}` is not known here.", param=name[:64], code="unknown_parameter")
    return fields


def canonical(fields: Mapping[str, Any], own: Mapping[str, Any], *, stream: bool, usage: bool, continuous: bool) -> bytes:
    """The forwarded body: what the client may say, overwritten by what we say."""
    body = dict(fields)
    body.update(own)
    if stream:
        body["stream"] = True
        if usage or continuous:
            body["stream_options"] = {"include_usage": True, "continuous_usage_stats": True} if continuous else {"include_usage": True}
    return _ENCODER.encode(body)


_ENCODER = msgspec.json.Encoder()
