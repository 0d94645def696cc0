"""``POST /v1/completions``: everything about it. One request may carry many prompts; each has n choices."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from extproc.errors import ClientError
from extproc.exchange.ask import Ask, Prompt
from extproc.exchange.endpoints import fields as read
from extproc.exchange.endpoints import openai

_OWN = frozenset({"model", "prompt", "stream", "stream_options", "n", "max_tokens", "best_of", "echo", "suffix"})
_KNOWN = read.SAMPLING_FIELDS


class Completions(openai.Answers):
    """Text in, text out, without a template."""

    name = "completions"
    paths = ("/v1/completions",)
    is_listed = True
    output_default: int | None = 16  # OpenAI's and vLLM's default of max_tokens here

    def parse(self, body: Mapping[str, Any], *, reject_unknown: bool) -> Ask:
        """See :class:`~extproc.exchange.ask.Endpoint`."""
        fields = read.allowed(body, _KNOWN, _OWN, reject_unknown=reject_unknown)
        read.check_stop(body)
        prompt = _prompt(body.get("prompt"))
        fields["prompt"] = body["prompt"]
        if read.truth(body, "echo"):
            raise ClientError("`echo` is not offered here.", param="echo", code="unsupported_parameter")
        if body.get("suffix"):
            raise ClientError("`suffix` is not offered here.", param="suffix", code="unsupported_parameter")
        choices = read.whole(body, "n", low=1, high=read.CHOICES_MAX) or 1
        best_of = read.whole(body, "best_of", low=1, high=read.CHOICES_MAX)
        if best_of is not None and best_of != choices:
            raise ClientError("`best_of` other than `n` is not offered here.", param="best_of", code="unsupported_parameter")
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
        )


def _prompt(value: Any) -> Prompt:
    """A text, tokens, or a list of either."""
    prompts = value if isinstance(value, list) and value and not _are_tokens(value) else [value]
    if len(prompts) > read.PROMPTS_MAX:
        raise ClientError(f"`prompt` has more than {read.PROMPTS_MAX} prompts.", param="prompt", code="invalid_value")
    texts, token_ids = [], 0
    for prompt in prompts:
        if isinstance(prompt, str):
            texts.append(prompt)
        elif isinstance(prompt, list) and prompt and _are_tokens(prompt):
            token_ids += len(prompt)
        else:
            raise ClientError(
                "`prompt` must be a string, a list of strings, or lists of tokens.", param="prompt", code="missing_required_parameter"
            )
    return Prompt(param="prompt", texts=tuple(texts), token_ids=token_ids, prompts=len(prompts))


def _are_tokens(value: list[Any]) -> bool:
    # In C: half a million ids are legal, and a loop over them would stand in everybody's way. (`bool` is no `int` here.)
    return set(map(type, value)) <= {int}
