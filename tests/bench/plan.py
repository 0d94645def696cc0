"""How much is measured: the whole, the quick and the smoke size; and what the requests look like."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Workload(StrEnum):
    """What is asked for. A stream has 100 events of one token and three more (role, finish, ``[DONE]``)."""

    JSON = "json"
    STREAM100 = "stream100"  # 5 ms between events: each is a message of its own, as behind a busy engine
    STREAM100_SLOW = "stream100_20ms"
    STREAM100_JOINED = "stream100_joined"  # as fast as the socket takes them: many events a message


DELAY_MS = {Workload.STREAM100: 5, Workload.STREAM100_SLOW: 20, Workload.STREAM100_JOINED: 0}
STREAM_TOKENS = 100
JSON_TOKENS = 16
FIRST_TOKENS = 5  # of the streams whose first token is timed
PROMPT_BYTES = 1_024


def prompt() -> str:
    """A kilobyte of English."""
    sentence = "The meter counts what the stream delivers, and the ledger keeps what the meter has counted. "
    return (sentence * (PROMPT_BYTES // len(sentence) + 1))[:PROMPT_BYTES]


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Counts are per target and round. Every run is bounded by count; the whole by these counts."""

    name: str
    rounds: int
    clients: int
    counts: dict[Workload, int]
    first_rate: int  # requests a second whose first token is timed
    first_count: int
    inside: dict[Workload, int]
    redis_pairs: int
    pg_batches: int
    pg_batch_rows: int = 1_000
    workers: int = 1
    payers: int = 8


FULL = Plan(
    name="full",
    rounds=5,
    clients=16,
    counts={Workload.JSON: 3_000, Workload.STREAM100: 160, Workload.STREAM100_SLOW: 48, Workload.STREAM100_JOINED: 320},
    first_rate=200,
    first_count=1_200,
    inside={Workload.JSON: 4_000, Workload.STREAM100: 800},
    redis_pairs=10_000,
    pg_batches=10,
)

QUICK = Plan(
    name="quick",
    rounds=3,
    clients=16,
    counts={Workload.JSON: 1_500, Workload.STREAM100: 96},
    first_rate=200,
    first_count=600,
    inside={Workload.JSON: 2_000, Workload.STREAM100: 400},
    redis_pairs=5_000,
    pg_batches=5,
)

SMOKE = Plan(
    name="smoke",
    rounds=1,
    clients=4,
    counts={Workload.JSON: 40, Workload.STREAM100: 4},
    first_rate=100,
    first_count=20,
    inside={Workload.JSON: 50},
    redis_pairs=200,
    pg_batches=1,
    pg_batch_rows=100,
)
