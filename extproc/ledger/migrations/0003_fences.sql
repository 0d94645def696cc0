-- Which life of its server each shard belongs to: a rebuild takes the next number here, and whoever has a lower one is refused.
CREATE TABLE shard_epochs (
    shard smallint PRIMARY KEY CHECK (shard >= 0),
    number bigint NOT NULL CHECK (number >= 1),
    epoch text NOT NULL,
    state text NOT NULL CHECK (state IN ('rebuilding', 'open')),
    wanted bigint NOT NULL DEFAULT 0,
    changed_at timestamptz NOT NULL DEFAULT now()
);
COMMENT ON COLUMN shard_epochs.epoch IS '<run_id of the Redis server>.<number>';
COMMENT ON COLUMN shard_epochs.wanted IS 'Somebody wants a rebuild with a number above this one: an operator, or who missed a payer.';

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
INSERT INTO budget_spend (budget_id, day, nanos)
SELECT coalesce(c.budget_id, c.id), (q.created_at AT TIME ZONE 'UTC')::date, sum(q.cost)
FROM requests AS q JOIN credentials AS c ON c.id = q.creds_id
WHERE c.budget_nanos IS NOT NULL AND q.cost > 0
GROUP BY 1, 2;

-- The moment in a UUIDv7: that of the request's headers, where the id is a hold's.
CREATE FUNCTION uuid7_moment(id uuid) RETURNS timestamptz LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE AS $$
    SELECT timestamptz 'epoch' + ('x' || translate(left(id::text, 13), '-', ''))::bit(48)::bigint * interval '1 millisecond'
$$;

-- CRC-32 (IEEE 802.3, reflected) of the id's text, half a byte at a time, modulo the number of shards: stores/shards.py says the same.
CREATE FUNCTION shard_of(payer uuid) RETURNS smallint LANGUAGE plpgsql IMMUTABLE STRICT PARALLEL SAFE AS $$
DECLARE
    steps CONSTANT bigint[] := ARRAY[
        x'00000000'::bigint, x'1DB71064'::bigint, x'3B6E20C8'::bigint, x'26D930AC'::bigint,
        x'76DC4190'::bigint, x'6B6B51F4'::bigint, x'4DB26158'::bigint, x'5005713C'::bigint,
        x'EDB88320'::bigint, x'F00F9344'::bigint, x'D6D6A3E8'::bigint, x'CB61B38C'::bigint,
        x'9B64C2B0'::bigint, x'86D3D2D4'::bigint, x'A00AE278'::bigint, x'BDBDF21C'::bigint];
    name CONSTANT bytea := payer::text::bytea;
    crc bigint := x'FFFFFFFF'::bigint;
BEGIN
    FOR i IN 0..35 LOOP
        crc := crc # get_byte(name, i);
        crc := steps[(crc & 15) + 1] # (crc >> 4);
        crc := steps[(crc & 15) + 1] # (crc >> 4);
    END LOOP;
    RETURN (crc # x'FFFFFFFF'::bigint) % 64;
END $$;
CREATE INDEX balances_shard ON balances (shard_of(user_id), user_id);
COMMENT ON INDEX balances_shard IS 'A rebuild reads the payers of a shard, in order.';
