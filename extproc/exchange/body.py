"""From bytes to an ask that can be priced: the one place where a request body is parsed."""

from __future__ import annotations

from extproc.accounts.scopes import model_fault
from extproc.catalog.model import Model
from extproc.errors import ClientError
from extproc.exchange.ask import Ask
from extproc.exchange.doors import too_large
from extproc.exchange.tab import Tab


def understand(tab: Tab, data: bytes) -> Ask:
    """Body → ask, and a model that this key may use on this path at this priority; :class:`ClientError` says what is wrong."""
    pinned, endpoint = tab.pinned, tab.door.endpoint
    assert endpoint is not None, "a question has no body"
    bytes_max = pinned.bounds.bytes_max(is_form=endpoint.is_form)
    if len(data) > bytes_max:
        raise too_large(bytes_max)
    body = endpoint.members(data, tab.content_type)
    # The cheap questions first: a model that nobody sells must not make us read a long prompt.
    name = body.get("model")
    model = pinned.catalog.models.get(name) if isinstance(name, str) else None
    if model is None and isinstance(name, str) and name:
        raise _not_found(f"The model {name[:64]!r} does not exist here.")
    tab.model = model
    if model is not None:
        _check_scope(tab, model)
        if endpoint.is_listed and endpoint.name not in model.endpoints:
            raise _not_found(f"{model.name} does not serve {tab.door.path}.")
    ask = endpoint.parse(body, reject_unknown=pinned.policy.unknown_fields == "reject")
    assert model is not None, "the endpoint has refused a body without a model"
    if tab.priority not in model.priority_factors:
        raise _not_found(f"{model.name} is not sold at priority {tab.priority!r}.", param="x-priority")
    tab.ask, tab.stream = ask, ask.stream
    tab.counter = pinned.counters.get(model.tokenizer, model.chat_template)
    return ask


def _check_scope(tab: Tab, model: Model) -> None:
    try:
        if tab.key is not None:
            model_fault(tab.key, model.name, open_to_sandbox=model.sandbox)
    except ClientError as error:
        if not tab.spares(error.code or ""):
            raise


def _not_found(message: str, param: str = "model") -> ClientError:
    return ClientError(message, status=404, param=param, code="model_not_found")
