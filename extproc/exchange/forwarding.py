"""What a backend gets of a request, and what its answer is measured by.

Beside what the client said, only we may tell a backend its place in the queue, and whose prompts it may remember: vLLM shares the cache
of prefixes between all who ask, so that everybody could find out, by the time to the first token, what others have asked. With another
``cache_salt`` for each payer, nobody finds another's prompts there.
"""

from __future__ import annotations

import hmac
from base64 import urlsafe_b64encode
from hashlib import sha256
from typing import Any

from msgspec import structs

from extproc.catalog.model import Model
from extproc.exchange.ask import JSON, Ask
from extproc.exchange.meter import Expected
from extproc.exchange.sizing import Size
from extproc.exchange.tab import Tab
from extproc.money.usage import TOKENS_MAX

# With these a client can have tokens generated that show no text, or have it kept back: who then left before the end would owe nothing.
_SILENT = frozenset({"logprobs", "ignore_eos", "min_tokens", "logit_bias", "allowed_token_ids", "bad_words"})

STICKY_CHARS = 1_024  # conversations that begin alike share a prefix cache; later turns must not move them


def forward(tab: Tab) -> bytes:
    """The body for the backend. Only what the meter must know is kept of the ask: a prompt need not live as long as its answer."""
    ask, model, sized = tab.ask, tab.model, tab.sized
    assert ask is not None
    assert model is not None
    assert sized is not None
    if tab.pinned.bounds.cache_salt_key or model.backend_priority:
        ask = structs.replace(ask, fields={**ask.fields, **_additions(tab, ask, model)})
    if ask.choices > ask.prompt.prompts:
        tab.remarks["choices"] = ask.choices // ask.prompt.prompts
    injects = _injects(tab, ask, model, sized)
    body = tab.body or ask.endpoint.canonical(
        ask,
        served_name=model.served_name,
        output_max=sized.output_each,
        usage=ask.wants_usage or injects[0],
        continuous=ask.wants_continuous_usage or injects[1],
    )
    tab.expected, tab.ask, tab.body = _expected(tab, ask, model, sized, injects), None, b""
    return body


def _injects(tab: Tab, ask: Ask, model: Model, sized: Size) -> tuple[bool, bool]:
    """Whether we ask for the final usage, and for usage on every chunk: also where we cannot count prompt or output ourselves."""
    if tab.is_shadow or model.usage not in ("inject", "continuous"):
        return False, False
    return True, model.usage == "continuous" or sized.estimated or bool(ask.echoes) or not _SILENT.isdisjoint(ask.fields)


def _expected(tab: Tab, ask: Ask, model: Model, sized: Size, injects: tuple[bool, bool]) -> Expected:
    rename = (model.served_name, ask.model) if model.served_name != ask.model and not tab.is_shadow else None
    forced = model.usage == "forced" and not tab.is_shadow
    return Expected(
        endpoint=ask.endpoint,
        counter=tab.counter,
        prompt=sized.prompt,
        input_tokens_max=sized.input_tokens_max,
        output_tokens_max=min(max(model.output_tokens_max, sized.output_each) * ask.choices, TOKENS_MAX),
        output_tokens_held=sized.demand.output_tokens,
        choices=ask.choices,
        prompts=ask.prompt.prompts,
        echoes=ask.echoes,
        trust_usage=tab.trusts_usage,
        needs_text=tab.price is not None and tab.price.needs_text,
        hide_final=not ask.wants_usage and (forced or injects[0]),
        hide_running=not ask.wants_continuous_usage and (forced or injects[1]),
        rename=(_quoted(rename[0]), _quoted(rename[1])) if rename else None,
        tells_cost=ask.stream and ask.wants_usage and tab.trusts_usage and not tab.is_shadow,
    )


def _additions(tab: Tab, ask: Ask, model: Model) -> dict[str, Any]:
    """Nothing for what no GPU works for, and for forms, whose endpoints know neither."""
    found: dict[str, Any] = {}
    if ask.is_free or ask.content_type != JSON:
        return found
    rank = model.backend_priority.get(tab.priority)
    if rank is not None:
        found["priority"] = rank
    salt_key = tab.pinned.bounds.cache_salt_key
    if salt_key and ask.endpoint.output_default != 0:
        found["cache_salt"] = cache_salt(salt_key, tab.payer_id)
    return found


def cache_salt(key: bytes, payer_id: str) -> str:
    """HMAC-SHA256 in 43 characters: letters, digits, ``-`` and ``_``, which vLLM takes."""
    return urlsafe_b64encode(hmac.digest(key, payer_id.encode(), "sha256")).rstrip(b"=").decode()


def sticky(tab: Tab) -> str:
    """What ``x-sticky`` is made of: nothing, the account, or account and the beginning of the prompt (for prefix caches)."""
    model, ask = tab.model, tab.ask
    assert model is not None
    assert ask is not None
    if model.sticky == "none":
        return ""
    if model.sticky == "account":
        return tab.payer_id
    beginning = "".join([content for _, content in ask.prompt.messages[:2]] + list(ask.prompt.texts[:1]))[:STICKY_CHARS]
    return sha256(f"{tab.payer_id}/{beginning}".encode("utf-8", "replace")).hexdigest()[:32]


def _quoted(name: str) -> bytes:
    return b'"' + name.encode() + b'"'
