"""``POST /v1/completions``: everything about it. One request may carry many prompts; each has n choices."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from extproc.errors import ClientError
from extproc.exchange.ask import Ask, Echo
from extproc.exchange.endpoints import fields as read
from extproc.exchange.endpoints import openai

ANSWERS_MAX = 1_024  # n × prompts: of a stream each of them has a count of its own

_OWN = frozenset({"model", "prompt", "stream", "stream_options", "n", "max_tokens", "best_of", "echo", "suffix"})
_KNOWN = read.SAMPLING_FIELDS


class Completions(openai.Usual):
    """Text in, text out, without a template."""

    name = "completions"
    paths = ("/v1/completions",)
    output_default: int | None = 16  # OpenAI's and vLLM's default of max_tokens here

    def parse(self, body: Mapping[str, Any], *, reject_unknown: bool) -> Ask:
        """See :class:`~extproc.exchange.ask.Endpoint`."""
        fields = read.allowed(body, _KNOWN, _OWN, reject_unknown=reject_unknown)
        read.check_stop(body)
        prompt = read.prompts(body.get("prompt"), "prompt")
        fields["prompt"] = body["prompt"]
        echoes = read.truth(body, "echo")
        if echoes:
            fields["echo"] = True
        if body.get("suffix"):
            raise ClientError("`suffix` is not offered here.", param="suffix", code="unsupported_parameter")
        choices = read.whole(body, "n", low=1, high=read.CHOICES_MAX) or 1
        best_of = read.whole(body, "best_of", low=1, high=read.CHOICES_MAX)
        if best_of is not None and best_of != choices:
            raise ClientError("`best_of` other than `n` is not offered here.", param="best_of", code="unsupported_parameter")
        if choices * prompt.prompts > ANSWERS_MAX:
            words = f"`n` = {choices} for each of {prompt.prompts} prompts are more than {ANSWERS_MAX} answers; send fewer prompts at once."
            raise ClientError(words, param="n" if choices > 1 else "prompt", code="invalid_value")
        if choices > 1:
            fields["n"] = choices
        stream, usage, continuous = read.stream_options(body)
        return Ask(
            endpoint=self,
            model=read.model_name(body),
            stream=stream,
            choices=choices * prompt.prompts,
            output_max=read.output_max(body, "max_tokens"),
            prompt=prompt,
            wants_usage=usage,
            wants_continuous_usage=continuous,
            fields=fields,
            echoes=_echoes(body["prompt"]) if echoes else (),
        )


def _echoes(prompt: Any) -> tuple[Echo, ...]:
    """Of prompts that have been understood, in their order, which is that of the choices."""
    listed = prompt if isinstance(prompt, list) and not read.are_tokens(prompt) else [prompt]
    return tuple([Echo(len(one), 0) if isinstance(one, str) else Echo(0, len(one)) for one in listed])
