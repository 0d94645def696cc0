"""From bytes to an ask that can be priced: the one place where a request body is parsed."""

from __future__ import annotations

from typing import Any

import msgspec

from extproc.accounts.scopes import model_fault
from extproc.errors import ClientError
from extproc.exchange.tab import Tab


def parse_object(data: bytes) -> dict[str, Any]:
    """Strict JSON (RFC 8259): UTF-8, no NaN; of doubled keys the last wins, and only that one is forwarded."""
    try:
        body = msgspec.json.decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, ValueError) as error:
        raise ClientError("The request body is not valid JSON.", code="invalid_json") from error
    if not isinstance(body, dict):
        raise ClientError("The request body must be a JSON object.", code="invalid_json")
    return body


def understand(tab: Tab, data: bytes) -> None:
    """Body → ask, and a model that this key may use on this path at this priority; :class:`ClientError` says what is wrong."""
    pinned = tab.pinned
    body = parse_object(data)
    assert tab.door is not None
    assert tab.door.endpoint is not None
    assert tab.key is not None
    ask = tab.door.endpoint.parse(body, reject_unknown=pinned.policy.unknown_fields == "reject")
    model = pinned.catalog.models.get(ask.model)
    if model is None:
        raise _not_found(f"The model {ask.model[:64]!r} does not exist here.")
    model_fault(tab.key, model.name)
    if ask.endpoint.name not in model.endpoints:
        raise _not_found(f"{model.name} does not serve {ask.endpoint.path}.")
    if tab.priority not in model.priority_factors:
        raise _not_found(f"{model.name} is not sold at priority {tab.priority!r}.", param="x-priority")
    tab.ask, tab.model = ask, model
    tab.counter = pinned.counters.get(model.tokenizer, model.chat_template)


def _not_found(message: str, param: str = "model") -> ClientError:
    return ClientError(message, status=404, param=param, code="model_not_found")
