"""What a catalog offers, in plain words, for those who are not to know the catalog's own types: the local stack."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from extproc.catalog.load import load_catalog
from extproc.tokens.vocabulary import TOKENIZERS


@dataclass(frozen=True, slots=True, kw_only=True)
class Offer:
    """One model. ``vocabulary``: its ``.tiktoken.xz`` file, if the package has one."""

    name: str
    served_name: str
    context_tokens: int
    chat_template: str
    usage: str
    vocabulary: Path | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Offers:
    """A whole catalog."""

    currency: str
    tiers: tuple[str, ...]
    models: tuple[Offer, ...]


def offers(catalog_file: Path) -> Offers:
    """Read it. :class:`~extproc.errors.ConfigError` with every fault."""
    catalog = load_catalog(catalog_file, vocabularies=TOKENIZERS)
    folder = Path(str(files("extproc.tokens"))) / "vocab"
    models = {model.name: model for model in catalog.models.values()}.values()
    return Offers(
        currency=catalog.currency,
        tiers=tuple(catalog.tiers),
        models=tuple(
            Offer(
                name=model.name,
                served_name=model.served_name,
                context_tokens=model.context_tokens,
                chat_template=model.chat_template,
                usage=model.usage,
                vocabulary=folder / TOKENIZERS[model.tokenizer].file if model.tokenizer in TOKENIZERS else None,
            )
            for model in models
        ),
    )
