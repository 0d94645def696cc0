"""Hostile bodies through what `extproc up` runs: refused in the shape of their endpoint and free of charge, or served and charged as any other."""

from __future__ import annotations

import random
from collections import Counter

import psycopg
from fuzz.hostile import check_error, random_hostile
from house import until
from psycopg.rows import dict_row
from upstack import HEARS, LOOKS, READS, TEXT, Up

BODIES = 400
SEED = 5


def test_hostile_bodies(up: Up):
    secret, pids = up.new_key("100"), up.stack.pids()
    headers = {"authorization": f"Bearer {secret}", "x-sim-tokens": "3"}
    became: Counter[int] = Counter()
    asked: dict[str, int] = {}
    for number in range(BODIES):
        ask = random_hostile(random.Random(f"{SEED}/{number}"))
        answer = up.http.post(ask.path, content=ask.body, headers=headers | {"content-type": ask.content_type})
        became[answer.status_code] += 1
        if ask.body:  # without one nobody was looked up yet: there is a metric, and no row
            asked[answer.headers["x-request-id"]] = answer.status_code
        assert answer.status_code < 500, (number, answer.text)
        if answer.status_code != 200 and "x-envoy-upstream-service-time" not in answer.headers:
            check_error(ask.path, answer.status_code, answer.content)
    assert became[200] > 20
    assert became[400] > 100
    with psycopg.connect(up.facts["postgres_dsn"], row_factory=dict_row, autocommit=True) as database:
        listed = "SELECT request_id, status, cost, hold_nanos FROM requests WHERE request_id = ANY(%s)"
        rows = until(
            lambda: (found := database.execute(listed, (list(asked),)).fetchall()) and len(found) == len(asked) and found, "all rows"
        )
    for row in rows:
        assert row["cost"] <= row["hold_nanos"], row
        assert row["status"] == asked[row["request_id"]]
        assert row["cost"] == 0 or row["status"] == 200, row
    assert up.stack.pids() == pids, "nobody has fallen over it"
    generated = {model: up.stack.simulators[model].log()[0] for model in (TEXT, LOOKS, READS, HEARS)}
    forwarded = {seen["request_id"]: seen for log in generated.values() for seen in log if seen["request_id"] in asked}
    held = {row["request_id"] for row in rows if row["hold_nanos"]}
    free = ("/tokenize", "/detokenize", "/v1/messages/count_tokens")
    assert {name for name, seen in forwarded.items() if seen["path"] not in free} <= held
