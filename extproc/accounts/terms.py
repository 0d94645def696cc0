"""Changes of an account's terms – its tier, and a price factor of its own – that are told beforehand. Pure.

A change that is over stays where it is until the next one is made: whoever asks for a moment lays those up to it over the terms
(:func:`~extproc.accounts.model.as_of`). So nobody has to do anything at the moment itself, and every process has the same terms from the
same millisecond on.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from extproc.accounts.model import Account, Change, as_of

CHANGES_MAX = 16  # that wait, of one account: each look-up of its keys carries them


def with_change(account: Account, change: Change, *, now_ms: int) -> Account:
    """``change`` from its moment on; a moment that is over: from now on. The last word counts: it takes the place of what was to change the
    same later. What is over becomes the account's own.
    """
    waiting = [
        one for one in account.changes if one.at_ms > now_ms and not (one.sets.keys() == change.sets.keys() and one.at_ms >= change.at_ms)
    ]
    account = as_of(account, now_ms)
    if change.at_ms <= now_ms:
        return replace(account, **change.sets, changes=tuple(waiting))
    return replace(account, changes=tuple(sorted([*waiting, change], key=lambda one: one.at_ms)))


def plain(changes: Iterable[Change]) -> list[dict[str, Any]]:
    """As JSON has them."""
    return [{"at_ms": change.at_ms, **change.sets} for change in changes]


def changes_of(found: Sequence[Mapping[str, Any]]) -> tuple[Change, ...]:
    """Out of JSON. ``TypeError`` for what another program may have written."""
    return tuple(Change(**one) for one in found)
