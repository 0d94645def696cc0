"""What is asked for, how often, and in how many rounds: the full, the quick and the smoke plan.

The base is 16 clients, prompts of 1 KB, 5 ms between events; every other workload differs from it in one respect, which its name tells.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

CLIENTS, DELAY_MS, KB = 16, 5, 1_024
MB_BYTES = 1_000_000  # of prompt: with the JSON around it below the limit of a body, 1 MiB

SMALL = "qwen2.5-7b"  # served by the simulator
STAMPING = "qwen-coder-7b"  # served by the upstream that writes the time into its events; costs what SMALL costs


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """Requests of one kind. A stream has ``tokens`` events of one token each and three more (role, finish, ``[DONE]``).

    ``delay_ms`` between events: 5 = each is a message of its own, as behind a busy engine; 0 = as fast as the socket takes them, many
    events a message. ``leave_after``: the client hangs up after so many events; 0 = it reads to the end. No client asks for usage.
    """

    tokens: int
    stream: bool = True
    delay_ms: int = DELAY_MS
    clients: int = CLIENTS
    prompt_bytes: int = KB
    leave_after: int = 0
    model: str = SMALL

    @property
    def name(self) -> str:
        """``json``, ``stream100``, ``stream1000_20ms``, ``json_32kb``, ``stream100_0ms``, ``json_512clients`` …"""
        parts = [f"stream{self.tokens}" if self.stream else "json"]
        if self.stream and self.delay_ms != DELAY_MS:
            parts.append(f"{self.delay_ms}ms")
        if self.prompt_bytes != KB:
            parts.append("1mb" if self.prompt_bytes == MB_BYTES else f"{self.prompt_bytes // KB}kb")
        if self.leave_after:
            parts.append("aborted")
        elif self.clients != CLIENTS and self.prompt_bytes != MB_BYTES:
            parts.append(f"{self.clients}clients" if self.clients > 1 else "1client")
        return "_".join(parts)


JSON = Workload(tokens=16, stream=False)
STREAM100 = Workload(tokens=100)
STREAM100_JOINED = Workload(tokens=100, delay_ms=0)
ABORTED = Workload(tokens=100, delay_ms=20, leave_after=40)
JSON_32KB = Workload(tokens=16, stream=False, prompt_bytes=32 * KB)
JSON_1MB = Workload(tokens=16, stream=False, prompt_bytes=MB_BYTES, clients=4)  # more would wait for the simulator's own tokenizer
FIRST = Workload(tokens=5, delay_ms=7)  # their first token is timed; 7 ms: not in step with a request every 5 ms
STAMPED = Workload(tokens=50, delay_ms=20, model=STAMPING)  # the delay of their events is timed


def json_of(clients: int) -> Workload:
    return Workload(tokens=JSON.tokens, stream=False, clients=clients)


def prompt(size: int = KB) -> str:
    """English. A megabyte is made of long words: with 131,072 tokens, no more, it fits the window that the bench gives its model."""
    short = "The meter counts what the stream delivers, and the ledger keeps what the meter has counted. "
    long = "Infrastructure responsibilities: implementation, documentation, configuration, authentication, communication. "
    sentence = long if size >= MB_BYTES else short
    return (sentence * (size // len(sentence) + 1))[:size]


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """``count`` requests of a workload for each target in each of so many rounds, as fast as its clients get answers."""

    workload: Workload
    count: int
    rounds: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Paced:
    """``rate`` requests a second whether earlier ones are answered or not: ``slices`` runs a round, targets taking turns within it."""

    workload: Workload
    rate: float
    count: int
    slices: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Every run is bounded by its count, so the whole is."""

    name: str
    rounds: int
    loads: tuple[Load, ...]
    first: Paced
    stamped: Paced
    inside: dict[Workload, int]
    redis_pairs: int
    pg_batches: int
    pg_batch_rows: int = 1_000
    workers: int = 1
    payers: int = 8


def _streams(rounds: int) -> tuple[Load, ...]:
    """20, 100 and 1,000 events with 0, 5 and 20 ms between them; 100 with 5 ms is the base."""
    counts = {(20, 0): 480, (20, 5): 160, (20, 20): 80, (100, 0): 320, (100, 20): 48, (1_000, 0): 48, (1_000, 5): 16, (1_000, 20): 16}
    return tuple(Load(workload=Workload(tokens=tokens, delay_ms=ms), count=count, rounds=rounds) for (tokens, ms), count in counts.items())


FULL = Plan(
    name="full",
    rounds=5,
    loads=(
        Load(workload=JSON, count=5_000, rounds=5),
        Load(workload=STREAM100, count=160, rounds=5),
        *_streams(3),
        Load(workload=json_of(1), count=500, rounds=3),
        Load(workload=json_of(32), count=3_000, rounds=3),  # as in ENVOY.md's table
        Load(workload=json_of(64), count=3_000, rounds=3),
        Load(workload=json_of(512), count=4_096, rounds=3),
        Load(workload=Workload(tokens=100, clients=1), count=4, rounds=3),
        Load(workload=Workload(tokens=100, clients=32), count=128, rounds=3),
        Load(workload=Workload(tokens=100, clients=64), count=192, rounds=3),
        Load(workload=Workload(tokens=100, delay_ms=20, clients=512), count=512, rounds=3),
        Load(workload=JSON_32KB, count=400, rounds=3),
        Load(workload=JSON_1MB, count=16, rounds=3),
        Load(workload=ABORTED, count=64, rounds=3),
    ),
    first=Paced(workload=FIRST, rate=200, count=200, slices=6),
    stamped=Paced(workload=STAMPED, rate=17, count=34, slices=3),
    inside={JSON: 4_000, STREAM100: 800},
    redis_pairs=10_000,
    pg_batches=40,
)

QUICK = Plan(
    name="quick",
    rounds=3,
    loads=(
        Load(workload=JSON, count=2_000, rounds=3),
        Load(workload=STREAM100, count=64, rounds=3),
        Load(workload=STREAM100_JOINED, count=128, rounds=1),
        Load(workload=json_of(64), count=1_000, rounds=1),
        Load(workload=JSON_32KB, count=100, rounds=1),
        Load(workload=ABORTED, count=16, rounds=1),
    ),
    first=Paced(workload=FIRST, rate=200, count=200, slices=2),
    stamped=Paced(workload=STAMPED, rate=17, count=34, slices=1),
    inside={JSON: 2_000, STREAM100: 400},
    redis_pairs=5_000,
    pg_batches=20,
)

SMOKE = Plan(
    name="smoke",
    rounds=2,
    loads=(
        Load(workload=JSON, count=32, rounds=2),
        Load(workload=STREAM100, count=4, rounds=1),
        Load(workload=STREAM100_JOINED, count=4, rounds=1),
        Load(workload=json_of(64), count=64, rounds=1),
        Load(workload=JSON_32KB, count=2, rounds=1),
        Load(workload=JSON_1MB, count=1, rounds=1),
        Load(workload=replace(ABORTED, leave_after=10), count=4, rounds=1),
    ),
    first=Paced(workload=FIRST, rate=100, count=10, slices=1),
    stamped=Paced(workload=replace(STAMPED, tokens=10), rate=40, count=4, slices=1),
    inside={JSON: 50},
    redis_pairs=200,
    pg_batches=1,
    pg_batch_rows=100,
)

NAMED = {load.workload.name: load.workload for load in FULL.loads}
