-- The reconciler: what it found and where its full run stands; and the newest events without an index that every posting would have to keep.
CREATE TABLE reconcile_findings (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    invariant smallint NOT NULL CHECK (invariant BETWEEN 1 AND 18),
    what text NOT NULL,
    subject text NOT NULL,
    account text NOT NULL DEFAULT '',
    expected text NOT NULL,
    found text NOT NULL,
    drift_nanos numeric NOT NULL DEFAULT 0,
    times bigint NOT NULL DEFAULT 1,
    first_seen_at timestamptz NOT NULL DEFAULT now(),
    last_seen_at timestamptz NOT NULL DEFAULT now(),
    resolved_at timestamptz
);
CREATE UNIQUE INDEX reconcile_findings_open ON reconcile_findings (invariant, what, subject) WHERE resolved_at IS NULL;
COMMENT ON TABLE reconcile_findings IS 'Broken invariants (MONEY.md), each once while it lasts; resolved_at: a later look found it whole. Nothing is corrected from here.';

CREATE TABLE reconcile_runs (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    started_at timestamptz NOT NULL DEFAULT now(),
    finished_at timestamptz,
    phase text NOT NULL DEFAULT 'events',
    after text NOT NULL DEFAULT '',
    looked_at bigint NOT NULL DEFAULT 0,
    findings bigint NOT NULL DEFAULT 0
);
COMMENT ON TABLE reconcile_runs IS 'Full reconciliations; one that is not finished goes on from phase and after.';

CREATE INDEX billing_events_created ON billing_events USING brin (created_at) WITH (pages_per_range = 16, autosummarize = on);
