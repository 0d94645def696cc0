"""How much a request can use at most: the demand that is held for (MONEY.md, "Size")."""

from __future__ import annotations

import msgspec
from msgspec import structs

from extproc.catalog.model import Model
from extproc.errors import ClientError
from extproc.exchange.ask import Ask
from extproc.money.quote import Demand
from extproc.money.usage import TOKENS_MAX
from extproc.tokens.counter import Counter

# Tokens that a backend adds to each prompt by itself (a BOS).
PROMPT_TOKENS_EACH = 2


class Size(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """``prompt_tokens`` is what we would charge for the prompt if nobody else counts it; ``estimated``: not or not wholly counted.

    ``output_each`` is the maximum per choice that is held for and written into the body; ``demand`` the bounds over all choices.
    """

    prompt_tokens: int
    estimated: bool
    output_each: int
    demand: Demand


def size(ask: Ask, model: Model, counter: Counter | None, *, counted: int | None) -> Size:
    """``counted``: exact prompt tokens, ``None`` = not counted (no vocabulary, or too large). 400 if the prompt cannot fit."""
    prompts = ask.prompt.prompts
    window = model.context_tokens * prompts
    if counted is None:
        tokens = min(ask.prompt.estimate(), window)
        bound = min(ask.prompt.bound(counter), window)
    else:
        tokens = counted
        bound = min(counted + ask.prompt.allowance + PROMPT_TOKENS_EACH * prompts, window)
        if prompts == 1 and ask.prompt.exact and counted >= model.context_tokens:
            raise ClientError(
                f"The prompt has {counted} tokens; the context window of {model.name} has {model.context_tokens}.",
                param="messages" if ask.prompt.messages else "prompt",
                code="context_length_exceeded",
            )
    output_each = min(_wanted(ask, model), model.output_tokens_max)
    if prompts == 1 and counted is not None:
        # Tools are bounded by the byte: what that leaves of the window is no measure of what fits.
        output_each = min(output_each, max(1, model.context_tokens - (bound if ask.prompt.exact else counted)))
    if output_each * ask.choices > TOKENS_MAX:
        raise ClientError(
            f"{ask.choices} answers of up to {output_each} tokens are too many for one request.", param="n", code="invalid_value"
        )
    return Size(
        prompt_tokens=tokens,
        estimated=counted is None or not ask.prompt.exact,
        output_each=output_each,
        demand=Demand(input_tokens=bound, output_tokens=output_each * ask.choices),
    )


def clamped(sized: Size, *, output_total: int, choices: int) -> Size:
    """The same demand with fewer output tokens (sum over choices), rounded down per choice."""
    each = min(sized.output_each, output_total // choices)
    return Size(
        prompt_tokens=sized.prompt_tokens,
        estimated=sized.estimated,
        output_each=each,
        demand=structs.replace(sized.demand, output_tokens=each * choices),
    )


def _wanted(ask: Ask, model: Model) -> int:
    if ask.output_max is not None:
        return ask.output_max
    default = ask.endpoint.output_default
    return model.output_tokens_default if default is None else default
