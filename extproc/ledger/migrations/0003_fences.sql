-- Which life of its server each shard belongs to: a rebuild takes the next number here, and whoever has a lower one is refused.
CREATE TABLE shard_epochs (
    shard smallint PRIMARY KEY CHECK (shard >= 0),
    number bigint NOT NULL CHECK (number >= 1),
    epoch text NOT NULL,
    state text NOT NULL CHECK (state IN ('rebuilding', 'open')),
    changed_at timestamptz NOT NULL DEFAULT now()
);
COMMENT ON COLUMN shard_epochs.epoch IS '<run_id of the Redis server>.<number>';

-- Gate workers that a rebuild has to hear: what they hold open is known to them alone.
CREATE TABLE gate_workers (
    id uuid PRIMARY KEY,
    name text NOT NULL,
    started_at timestamptz NOT NULL DEFAULT now(),
    seen_at timestamptz NOT NULL DEFAULT now()
);

-- What keys with a budget have spent, by the day (UTC) of the hold: a rebuild sums it over the budget's period.
CREATE TABLE budget_spend (
    budget_id uuid NOT NULL,
    day date NOT NULL,
    nanos bigint NOT NULL,
    PRIMARY KEY (budget_id, day)
) WITH (fillfactor = 70);
