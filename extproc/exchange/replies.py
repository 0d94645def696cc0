"""What we say when we refuse, in the shapes that OpenAI's SDKs understand (ECOSYSTEM.md, "Errors that SDKs understand")."""

from __future__ import annotations

from typing import Any

import msgspec

from extproc.errors import ClientError
from extproc.exchange.actions import Answer, Pairs
from extproc.exchange.policy import Policy
from extproc.money.amount import format_amount
from extproc.money.hold import Denied, DenyReason, Window

JSON_TYPE = ("content-type", "application/json")
# What a cut stream ends with: an SDK raises APIError on it; without it a cut stream looks like a success.
CUT_MESSAGE = "The server is shutting down and had to cut this answer. What was delivered is charged."
CUT_ERROR = {"message": CUT_MESSAGE, "type": "server_error", "param": None, "code": "stream_cut"}
CUT_EVENT = (
    b"\n\n"  # a stream may have ended in the middle of an event by itself
    b"data: " + msgspec.json.encode({"error": CUT_ERROR}) + b"\n\ndata: [DONE]\n\n"
)
STORES_RETRY_S = 1
NEVER_RETRY_MS = 60_000


def deny(error: ClientError, *, request_id: str, headers: Pairs = (), metadata: dict[str, Any] | None = None) -> Answer:
    """``{"error": {"message", "type", "param", "code"}}`` and ``metadata`` where it helps."""
    body: dict[str, Any] = {"message": error.message, "type": error.type, "param": error.param, "code": error.code}
    if metadata:
        body["metadata"] = metadata
    return Answer(
        status=error.status,
        code=error.code or "other",
        body=msgspec.json.encode({"error": body}),
        headers=(JSON_TYPE, ("x-request-id", request_id), *headers) if request_id else (JSON_TYPE, *headers),
    )


def unauthorized(message: str) -> ClientError:
    """401 in every case of a key that does not open: which one it was is nobody's business."""
    return ClientError(message, status=401, type="invalid_request_error", code="invalid_api_key")


def forbidden(message: str, code: str) -> ClientError:
    """403: a key that is known, and may not do this."""
    return ClientError(message, status=403, type="permission_error", code=code)


def unavailable(request_id: str) -> Answer:
    """503: a store did not answer; nothing was charged."""
    error = ClientError(
        "Billing is not available at the moment; nothing was charged. Try again.", status=503, type="server_error", code="unavailable"
    )
    return deny(error, request_id=request_id, headers=(("retry-after", str(STORES_RETRY_S)),))


_LIMITED = {
    DenyReason.REQUESTS_PER_MINUTE: "requests a minute",
    DenyReason.REQUESTS_PER_HOUR: "requests an hour",
    DenyReason.TOKENS_PER_MINUTE: "tokens a minute",
    DenyReason.SANDBOX_TOKENS: "sandbox tokens a day",
    DenyReason.CONCURRENT: "requests at the same time",
}


def refusal(denied: Denied, *, policy: Policy, currency: str, request_id: str) -> tuple[Answer, str]:
    """A verdict of the hold store → (reply, its error code)."""
    reason = denied.reason
    if reason in _LIMITED:
        return _limited(denied, request_id), "rate_limit_exceeded"
    if reason in (DenyReason.INSUFFICIENT, DenyReason.KEY_BUDGET):
        return _out_of_money(denied, policy=policy, currency=currency, request_id=request_id), "insufficient_quota"
    if reason is DenyReason.HELD:
        error = ClientError(
            "Requests in flight hold the rest of your balance; what they do not use comes back when they end. Try again.",
            status=429,
            type="rate_limit_error",
            code="balance_held",
        )
        wait_ms = denied.retry_after_ms or 1_000
        return deny(error, request_id=request_id, headers=_wait(wait_ms), metadata=_money(denied, currency, policy)), "balance_held"
    if reason in (DenyReason.KEY_REVOKED, DenyReason.KEY_EXPIRED):
        word = "revoked" if reason is DenyReason.KEY_REVOKED else "expired"
        return deny(unauthorized(f"This API key is {word}. Use another one."), request_id=request_id), "invalid_api_key"
    if reason is DenyReason.FROZEN:
        error = ClientError("This account is frozen. Ask the operator.", status=403, type="permission_error", code="account_frozen")
        return deny(error, request_id=request_id), "account_frozen"
    return unavailable(request_id), "unavailable"


def _limited(denied: Denied, request_id: str) -> Answer:
    window = denied.window
    limit = f" of {window.limit}" if window else ""
    whose = "this API key" if denied.limit_source == "key" else "your account"
    words = f"The limit{limit} {_LIMITED[denied.reason]} for {whose} is reached. Try again later."
    headers = _wait(denied.retry_after_ms)
    if not denied.retry_after_ms:
        # An SDK that asks again would be refused again; clients that look for `retry-after` only are kept off for a while.
        words = f"This request alone is above the limit{limit} {_LIMITED[denied.reason]} for {whose}. It cannot be served; ask for less."
        headers = (*_wait(NEVER_RETRY_MS), ("x-should-retry", "false"))
    error = ClientError(words, status=429, type="rate_limit_error", code="rate_limit_exceeded")
    kind = "tokens" if denied.reason in (DenyReason.TOKENS_PER_MINUTE, DenyReason.SANDBOX_TOKENS) else "requests"
    return deny(error, request_id=request_id, headers=(*headers, *rate_headers(kind, window)))


def _out_of_money(denied: Denied, *, policy: Policy, currency: str, request_id: str) -> Answer:
    whose = "this API key's budget" if denied.reason is DenyReason.KEY_BUDGET else "your balance"
    hint = f" Top up at {policy.topup_url}." if policy.topup_url else " Top up, or ask for fewer tokens."
    error = ClientError(
        f"This request may cost {format_amount(denied.required_nanos)} {currency}, and {whose} has"
        f" {format_amount(denied.spendable_nanos)} {currency} left.{hint}",
        status=policy.out_of_money_status,
        type="insufficient_quota",
        code="insufficient_quota",
    )
    headers = (("x-should-retry", "false"),)
    return deny(error, request_id=request_id, headers=headers, metadata=_money(denied, currency, policy))


def _money(denied: Denied, currency: str, policy: Policy) -> dict[str, Any]:
    money = {
        "limit_source": denied.limit_source,
        "required": format_amount(denied.required_nanos),
        "available": format_amount(denied.spendable_nanos),
        "currency": currency,
    }
    if policy.topup_url:
        money["topup_url"] = policy.topup_url
    return money


def _wait(wait_ms: int) -> Pairs:
    return (("retry-after", str(-(-wait_ms // 1_000))), ("retry-after-ms", str(wait_ms)))


def rate_headers(kind: str, window: Window | None) -> Pairs:
    """``x-ratelimit-{limit,remaining,reset}-{requests,tokens}``; empty without a limit."""
    if window is None:
        return ()
    return (
        (f"x-ratelimit-limit-{kind}", str(window.limit)),
        (f"x-ratelimit-remaining-{kind}", str(window.remaining)),
        (f"x-ratelimit-reset-{kind}", f"{-(-window.reset_ms // 1_000)}s"),
    )
