"""What an account and its keys have spent, for those who ask about their money: sums of days that the poster keeps, never of requests."""

from __future__ import annotations

from extproc.errors import StoreRefused
from extproc.money.statement import Enquiry, Spent
from extproc.stores.postgres import Database, Params
from extproc.stores.queries import load_queries


class PostgresSpending:
    """One round trip for each enquiry, over a pool that others use as well: a caller bounds how many there are."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._queries = load_queries("extproc.ledger")

    async def spent(self, enquiry: Enquiry) -> Spent:
        """As posted. :class:`~extproc.errors.StoreRefused` as well where the ledger has no such account."""
        payer, key = enquiry.payer_id, enquiry.key_id
        days: Params = {"payer": payer, "key": None if enquiry.of_account else key, "since": enquiry.since, "until": enquiry.until}
        named: tuple[tuple[str, Params], ...] = (
            ("credits_of_account", {"payer": payer}),
            ("spent_by_key", {"key": key}),
            ("spent_by_day", days),
        )
        async with self._database.transaction() as transaction:
            put_in, ever, by_day = await transaction.run([(self._queries[name], params) for name, params in named])
        if not put_in:
            raise StoreRefused(f"the ledger has no account {payer}")
        return Spent(**put_in[0], key_nanos=ever[0]["nanos"], days=tuple((row["day"], row["nanos"]) for row in by_day))
