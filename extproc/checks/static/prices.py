"""Prices that are valid, and do not grow with the work that is done for them."""

from __future__ import annotations

from collections.abc import Iterator

from extproc.catalog.model import CHAT_COMPLETIONS, COMPLETIONS, WITHOUT_OUTPUT, Catalog, Model, Tariff
from extproc.checks.static.world import Findings, at, warning
from extproc.yamlfile import Node

# Not words: a text without blanks is one, however long it is.
OF_PROMPTS = frozenset({"input", "input_characters", "audio_ms"})
OF_ANSWERS = frozenset({"output", "output_characters"})
ANSWERS_MAX = {COMPLETIONS: 1_024, CHAT_COMPLETIONS: 128}  # of a request, by `n` and prompts (docs/reference/endpoints.md)


def flat_prices(catalog: Catalog | None, file: Node | None) -> Findings:
    """Each may be meant, and nobody should have to find it out from the bills."""
    if catalog is None or file is None:
        return
    for name, model in catalog.models.items():
        if name != model.name or model.free:
            continue
        for what in dict.fromkeys(what for tariff in model.tariffs for what in _flat(model, tariff)):
            todo = "price tokens or characters too (method: hybrid), unless whoever may use it is known to you"
            yield warning("flat_prices", at(file, "models", name, "price"), f"{name}: {what}", todo)


def _flat(model: Model, tariff: Tariff) -> Iterator[str]:
    priced = {unit for rates in (tariff.rates, *(band.rates for band in tariff.bands)) for unit, rate in rates.spec().items() if rate}
    if not priced & OF_PROMPTS:
        yield f"a prompt costs the same however long it is, up to {model.context_tokens} tokens"
    if not model.endpoints <= WITHOUT_OUTPUT and not priced & OF_ANSWERS:
        answers = max(ANSWERS_MAX.get(endpoint, 1) for endpoint in model.endpoints)
        yield f"answers cost the same however long they are: {answers} of {model.output_tokens_max} tokens in a request"
