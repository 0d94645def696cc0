"""What somebody is told who asks about his money: what the hold store has of it, live, and what the ledger has, posted."""

from __future__ import annotations

from datetime import date

import msgspec

from extproc.money.usage import NO_QUOTA, Quota


class Enquiry(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """Who asks, and which days (UTC) of spending are to be told: from ``since`` on, before ``until``.

    ``of_account``: those of all its keys together; else of this key alone and of those that it replaced.
    """

    payer_id: str
    key_id: str
    of_account: bool
    since: date
    until: date


class Purse(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """Live. ``balance_nanos``: what is not charged yet, ``held_nanos`` of it reserved by requests in flight.

    ``total_nanos``: everything that the ledger has told the hold store of this account so far. ``budget_used_nanos``: what the key has
    spent and holds of its budget in the present period; ``None``: it has none. ``free``: tokens of the account's quota that nobody holds;
    ``held_free``: those that requests in flight hold.
    """

    balance_nanos: int
    held_nanos: int
    credit_nanos: int
    total_nanos: int
    budget_used_nanos: int | None = None
    free: Quota = NO_QUOTA
    held_free: Quota = NO_QUOTA


class Spent(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """Posted. ``credits_nanos``: what was put into the account, less what was taken out of it other than by requests.

    ``told_nanos``: what the hold store is to know as its ``total_nanos``. ``key_nanos``: of this key, ever. ``days``: as enquired, in their
    order, those without spending left out.
    """

    credits_nanos: int
    told_nanos: int
    key_nanos: int = 0
    days: tuple[tuple[date, int], ...] = ()

    def since(self, first: date) -> int:
        """What was spent from this day on."""
        return sum(nanos for day, nanos in self.days if day >= first)


class Statement(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """Both, and what follows from them."""

    purse: Purse
    spent: Spent

    @property
    def balance_nanos(self) -> int:
        """What is not charged yet, money on its way from the ledger to the hold store included."""
        return self.purse.balance_nanos + self.spent.told_nanos - self.purse.total_nanos

    @property
    def available_nanos(self) -> int:
        """What may be held for a request now; less than nothing: as if nothing."""
        return max(0, self.purse.balance_nanos - self.purse.held_nanos + self.purse.credit_nanos)

    @property
    def used_nanos(self) -> int:
        """Everything that requests have ever cost, what is not posted yet included, what was refunded left out."""
        return self.spent.credits_nanos - self.balance_nanos
