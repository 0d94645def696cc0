"""How much a request can use at most: the demand that is held for (MONEY.md, "Size")."""

from __future__ import annotations

import msgspec
from msgspec import structs

from extproc.catalog.model import Model
from extproc.errors import ClientError
from extproc.exchange.ask import Ask, Prompt
from extproc.money.price import Price
from extproc.money.quote import Demand
from extproc.money.usage import NO_USAGE, TOKENS_MAX, Usage, UsageSource
from extproc.tokens.counter import Counter
from extproc.tokens.images import Size as Pixels
from extproc.tokens.images import image_sizes, image_tokens

IMAGES_MAX = 256  # of a request: more than any model is served with

UNKNOWN_IMAGE = (1_024, 1_024)
"""What an image by URL is taken for when nobody else counts it; it is held at the model's ``tokens_max``."""


class Size(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """``prompt`` is what we would charge for the prompt if nobody else counts it; ``estimated``: not or not wholly counted.

    ``output_each`` is the maximum per choice that is held for and written into the body; ``demand`` the bounds over all choices.
    ``input_tokens_max``: more than that the model cannot read.
    """

    prompt: Usage
    estimated: bool
    output_each: int
    demand: Demand
    input_tokens_max: int


NO_SIZE = Size(prompt=NO_USAGE, estimated=False, output_each=0, demand=Demand(input_tokens=0, output_tokens=0), input_tokens_max=0)
"""Of what is free."""


def size(ask: Ask, model: Model, counter: Counter | None, *, counted: int | None) -> Size:
    """``counted``: exact tokens of the prompt's text, ``None`` = not counted (no vocabulary, or too large). 400 if it cannot fit."""
    if ask.is_free:
        return NO_SIZE
    prompt = ask.prompt
    if ask.echoes and counter is None:
        raise ClientError(f"`echo` is not offered for {model.name}.", param="echo", code="unsupported_parameter")
    window = model.context_tokens * prompt.prompts
    images = _images(prompt, model)
    if counted is None:
        text, bound = prompt.estimate(), prompt.bound(counter)
    else:
        text, bound = counted, counted + prompt.allowance(counter) + prompt.tokens_each * prompt.prompts
    is_exact = counted is not None and prompt.is_exact(counter) and not images.unknown
    bound = min(bound + images.tokens_max, window)
    least = text + images.tokens  # that is read for certain
    if prompt.prompts == 1 and is_exact and not prompt.is_truncated and least >= model.context_tokens:
        words = f"The prompt has {least} tokens; the context window of {model.name} has {model.context_tokens}."
        raise ClientError(words, param=prompt.param, code="context_length_exceeded")
    output_each = min(_wanted(ask, model), model.output_tokens_max)
    if prompt.prompts == 1 and counted is not None:
        # Odd fields are bounded by the byte, images by their largest: what that leaves of the window is no measure of what fits.
        output_each = min(output_each, max(1, model.context_tokens - (bound if is_exact else least)))
    _check_output(output_each, ask.choices)
    estimated = not is_exact or prompt.audio_ms != prompt.audio_ms_likely
    own = Usage(
        input_tokens=min(least + images.likely, window),
        source=UsageSource.COUNTED,
        flags=("prompt_estimated",) if estimated else (),
    )
    demand = Demand(input_tokens=bound, output_tokens=output_each * ask.choices)
    if prompt.images or prompt.audio_ms:
        own, demand = _with_media(own, demand, prompt, images)
    return Size(
        prompt=own,
        estimated=estimated,
        output_each=output_each,
        demand=demand,
        input_tokens_max=min(window, TOKENS_MAX),
    )


def _with_media(own: Usage, demand: Demand, prompt: Prompt, images: _Images) -> tuple[Usage, Demand]:
    """The same with what is seen and heard."""
    count = len(prompt.images)
    seen, seen_max = images.tokens + images.likely, min(images.tokens_max, demand.input_tokens)
    return (
        structs.replace(own, image_tokens=min(seen, own.input_tokens), images=count, audio_ms=prompt.audio_ms_likely),
        structs.replace(demand, image_tokens=seen_max, images=count, audio_ms=prompt.audio_ms),
    )


def with_text(sized: Size, ask: Ask, price: Price) -> Size:
    """The same with characters and words, if the price asks for them. Nobody else counts those: what is held is what is charged."""
    if not price.needs_text or sized.demand.input_characters:
        return sized
    if ask.echoes and ask.prompt.token_ids:
        why = f"`echo` of token ids is not offered for {ask.model}: its price is by the text."
        raise ClientError(why, param="echo", code="unsupported_parameter")
    characters, words = ask.prompt.characters_and_words()
    return structs.replace(
        sized,
        prompt=structs.replace(sized.prompt, input_characters=characters, input_words=words),
        demand=structs.replace(sized.demand, input_characters=characters, input_words=words),
    )


def clamped(sized: Size, *, output_total: int, choices: int) -> Size:
    """The same demand with fewer output tokens (sum over choices), rounded down per choice."""
    each = min(sized.output_each, output_total // choices)
    return structs.replace(sized, output_each=each, demand=structs.replace(sized.demand, output_tokens=each * choices))


class _Images(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """``tokens`` of those whose size is known; of the others ``likely``; ``tokens_max`` of all."""

    tokens: int = 0
    likely: int = 0
    tokens_max: int = 0
    unknown: bool = False


_NO_IMAGES = _Images()


def _images(prompt: Prompt, model: Model) -> _Images:
    if not prompt.images:
        return _NO_IMAGES
    if not model.image_formula:
        raise ClientError(f"{model.name} takes text only, no images.", param=prompt.param, code="images_not_supported")
    if len(prompt.images) > IMAGES_MAX:
        raise ClientError(f"`{prompt.param}` has more than {IMAGES_MAX} images.", param=prompt.param, code="invalid_value")

    def tokens(size: Pixels | None) -> int:
        return image_tokens(model.image_formula, size, model.image_tokens_max)

    sizes = image_sizes(prompt.images)
    known = sum(tokens(size) for size in sizes if size is not None)
    unknown = sizes.count(None)
    return _Images(
        tokens=known,
        likely=unknown * tokens(UNKNOWN_IMAGE),
        tokens_max=known + unknown * tokens(None),
        unknown=unknown > 0,
    )


def _wanted(ask: Ask, model: Model) -> int:
    if ask.output_max is not None:
        return ask.output_max
    default = ask.endpoint.output_default
    return model.output_tokens_default if default is None else default


def _check_output(each: int, choices: int) -> None:
    if each * choices > TOKENS_MAX:
        words = f"{choices} answers of up to {each} tokens are too many for one request."
        raise ClientError(words, param="n", code="invalid_value")
