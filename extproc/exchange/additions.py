"""What only we may tell a backend of a request, beside what the client said: its place in the queue, and whose prompts it may remember.

vLLM shares the cache of prefixes between all who ask, so that everybody could find out, by the time to the first token, what others have
asked. With another ``cache_salt`` for each payer, nobody finds another's prompts there.
"""

from __future__ import annotations

import hmac
from base64 import urlsafe_b64encode
from typing import Any

from extproc.catalog.model import Model
from extproc.exchange.ask import JSON, Ask


def additions(ask: Ask, model: Model, *, priority: str, payer_id: str, salt_key: bytes) -> dict[str, Any]:
    """Members of the forwarded body. Nothing for what no GPU works for, and for forms, whose endpoints know neither."""
    found: dict[str, Any] = {}
    if ask.is_free or ask.content_type != JSON:
        return found
    rank = model.backend_priority.get(priority)
    if rank is not None:
        found["priority"] = rank
    if salt_key and ask.endpoint.output_default != 0:
        found["cache_salt"] = cache_salt(salt_key, payer_id)
    return found


def cache_salt(key: bytes, payer_id: str) -> str:
    """HMAC-SHA256 in 43 characters: letters, digits, ``-`` and ``_``, which vLLM takes."""
    return urlsafe_b64encode(hmac.digest(key, payer_id.encode(), "sha256")).rstrip(b"=").decode()
