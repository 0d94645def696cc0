"""POST /v1/completions, as vLLM reads and writes it. One request may carry many prompts; each has n choices."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from extproc.local.sim import fields as read
from extproc.local.sim.ask import Ask, Model, Refused, error_json
from extproc.local.sim.http import json_bytes
from extproc.local.sim.prompt import Part, prompt_of
from extproc.local.sim.shape import DONE, Output
from extproc.local.sim.speech import Item
from extproc.local.sim.steering import Steering
from extproc.local.sim.text import Text
from extproc.local.sim.usage import Spent, usage_of_chunks

PROMPTS_MAX = 4_096
"""Of one request: enough for any test."""

TOKENS_DEFAULT = 16
"""``max_tokens`` where the client names none (OpenAI's, and vLLM's)."""


def ask_of_completions(fields: Mapping[str, Any], model: Model, steering: Steering, text: Text) -> Ask:
    """Raises :class:`Refused`."""
    if fields.get("suffix"):
        raise Refused(400, "suffix is not currently supported", param="suffix")
    parts = prompts_of(fields.get("prompt"), name="prompt")
    stream, echo = read.flag(fields, "stream"), read.flag(fields, "echo")
    limit = read.integer(fields, "max_tokens", least=0 if echo else 1)
    return read.generating(
        fields,
        model,
        steering,
        [prompt_of([part], text) for part in parts],
        # The engine cannot make nothing: for an echo alone one token is made, billed and not shown.
        1 if limit == 0 else TOKENS_DEFAULT if limit is None else limit,
        n=read.choices_of(fields),
        stream=stream,
        usage=read.stream_options(fields, model, stream=stream),
        is_silent=limit == 0,
        echoes=tuple(_echo(part, text) for part in parts) if echo else (),
    )


def prompts_of(value: Any, *, name: str) -> list[Part]:
    """A string, token ids, or a list of either. Raises :class:`Refused`."""
    if isinstance(value, str):
        return [value]
    if not isinstance(value, list) or not value or len(value) > PROMPTS_MAX:
        raise Refused(400, f"Either {name} or {name}_embeds must be provided and non-empty.", param=name)
    if _are_tokens(value):
        return [tuple(value)]
    if all(isinstance(one, str) for one in value):
        return value
    if all(isinstance(one, list) and _are_tokens(one) for one in value):
        return [tuple(one) for one in value]
    raise Refused(400, f"{name} must be a string, a list of strings, token ids, or a list of token ids", param=name)


def _are_tokens(value: list[Any]) -> bool:
    return all(isinstance(token, int) for token in value)


def _echo(part: Part, text: Text) -> bytes:
    assert isinstance(part, str | tuple)
    try:
        return json_bytes(part if isinstance(part, str) else text.decode(part))[1:-1]
    except (ValueError, UnicodeEncodeError) as error:
        raise Refused(400, str(error), param="prompt") from error


class CompletionsShape:
    """Of one request. There is no event before the first token, and reasoning is text like any other."""

    end = DONE

    def __init__(self, request_id: str, created: int, model_json: bytes, ask: Ask) -> None:
        del ask
        self._members = b'"id":"cmpl-%b","object":"text_completion","created":%d,"model":%b' % (request_id.encode(), created, model_json)
        self._event = b"data: {%b" % self._members

    def opening(self, choice: int, usage: bytes) -> Iterable[bytes]:  # noqa: ARG002 - the protocol's
        return ()

    def begin(self, choice: int, item: Item, usage: bytes) -> Iterable[bytes]:  # noqa: ARG002 - the protocol's
        return ()

    def said(self, choice: int, item: Item, text: bytes, usage: bytes) -> bytes:  # noqa: ARG002 - the protocol's
        return b'%b,"choices":[{"index":%d,"text":"%b","logprobs":null,"finish_reason":null,"stop_reason":null}]%b}\n\n' % (
            self._event,
            choice,
            text,
            usage,
        )

    def finish(self, choice: int, reason: str, usage: bytes) -> Iterable[bytes]:
        yield b'%b,"choices":[{"index":%d,"text":"","logprobs":null,"finish_reason":"%b","stop_reason":null}]%b}\n\n' % (
            self._event,
            choice,
            reason.encode(),
            usage,
        )

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
            b'{"index":%d,"text":"%b","logprobs":null,"finish_reason":"%b","stop_reason":null,"prompt_logprobs":null}'
            % (index, b"".join(text for _, text in output), reason.encode())
            for index, output in enumerate(outputs)
        )
        told = b"" if usage is None else b',"usage":%b' % usage
        return b'{%b,"choices":[%b],"service_tier":null,"system_fingerprint":null%b,"kv_transfer_params":null}' % (
            self._members,
            choices,
            told,
        )
