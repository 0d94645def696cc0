-- Refunds of usage, and months that are closed.

ALTER TABLE requests ADD COLUMN refunded_nanos bigint NOT NULL DEFAULT 0;
-- Not looked for in old rows: there it is 0, and a month of requests would be read for it.
ALTER TABLE requests ADD CONSTRAINT requests_refunded_check CHECK (refunded_nanos BETWEEN 0 AND cost) NOT VALID;
COMMENT ON COLUMN requests.refunded_nanos IS 'Given back of the cost afterwards, by usage_refund events; refund_nanos is what came back of the hold.';

-- In which month an event is booked: the one in which it occurred, unless that was closed when it came. Only what comes late says so.
ALTER TABLE billing_events ADD COLUMN late_period date;
ALTER TABLE billing_events ADD CONSTRAINT billing_events_late_check CHECK (late_period > occurred_at AT TIME ZONE 'UTC') NOT VALID;
COMMENT ON COLUMN billing_events.late_period IS 'The month that a late event was booked in; NULL: the month in which it occurred (period_of).';
CREATE INDEX billing_events_late ON billing_events (late_period) WHERE late_period IS NOT NULL;
CREATE INDEX billing_events_occurred ON billing_events USING brin (occurred_at) WITH (pages_per_range = 16, autosummarize = on);

CREATE FUNCTION period_of(occurred_at timestamptz, late_period date) RETURNS date LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$
    SELECT coalesce(late_period, date_trunc('month', occurred_at AT TIME ZONE 'UTC')::date)
$$;
COMMENT ON FUNCTION period_of IS 'The month of an event, as its first day (UTC).';

CREATE TABLE periods (
    month date PRIMARY KEY CHECK (month = date_trunc('month', month)::date),
    closed_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    actor text NOT NULL CHECK (length(actor) BETWEEN 1 AND 200),
    reason text NOT NULL DEFAULT '',
    events bigint CHECK (events >= 0),
    late bigint CHECK (late BETWEEN 0 AND events),
    summed_at timestamptz,
    CHECK ((events IS NULL) = (summed_at IS NULL) AND (late IS NULL) = (summed_at IS NULL))
);
COMMENT ON TABLE periods IS 'Closed months, in order, without a gap: nothing is booked into them any more.';
COMMENT ON COLUMN periods.summed_at IS 'When its sums were frozen; NULL: the close was cut off, and is taken up by closing it again.';

CREATE TABLE period_sums (
    month date NOT NULL REFERENCES periods (month),
    kind text NOT NULL,
    name text NOT NULL DEFAULT '',
    unit text NOT NULL,
    sum numeric NOT NULL,
    PRIMARY KEY (month, kind, name, unit)
);
COMMENT ON TABLE period_sums IS 'What a closed month did to each account; all customers together are one.';
CREATE TRIGGER period_sums_append_only BEFORE UPDATE OR DELETE ON period_sums FOR EACH STATEMENT EXECUTE FUNCTION is_append_only();
