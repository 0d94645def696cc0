-- The second witness: how far each access log has been read, and reasons that wait for the rows of their requests.
CREATE TABLE witness_logs (
    log text PRIMARY KEY CHECK (length(log) BETWEEN 1 AND 4500),
    inode numeric(20) NOT NULL CHECK (inode >= 0),
    offset_bytes bigint NOT NULL CHECK (offset_bytes >= 0),
    before text NOT NULL DEFAULT '' CHECK (length(before) <= 64),
    updated_at timestamptz NOT NULL DEFAULT now()
);
COMMENT ON TABLE witness_logs IS 'Here and not beside the log: with an older copy of the ledger, what it has not been told is read again.';
COMMENT ON COLUMN witness_logs.log IS 'host:path.';
COMMENT ON COLUMN witness_logs.before IS 'Digest of what stands before the offset: tells the file from another one of that name or inode.';

CREATE TABLE witness_reasons (
    hold_id uuid PRIMARY KEY,
    end_reason text NOT NULL CHECK (end_reason IN ('client_gone', 'edge_lost', 'upstream_error', 'upstream_reset')),
    seen_at timestamptz NOT NULL DEFAULT now()
);
COMMENT ON TABLE witness_reasons IS 'Why requests ended, as the access log has it, until their rows are posted; a day at most.';

CREATE TABLE witness_endings (
    hold_id uuid PRIMARY KEY,
    payer_id uuid NOT NULL,
    key_id uuid NOT NULL,
    request_id text NOT NULL CHECK (length(request_id) <= 200),
    status integer NOT NULL CHECK (status >= 0),
    cap_nanos bigint NOT NULL CHECK (cap_nanos >= 0),
    price_id text NOT NULL CHECK (length(price_id) BETWEEN 1 AND 200),
    figures json NOT NULL CHECK (length(figures::text) <= 1000),
    seen_at timestamptz NOT NULL DEFAULT now()
);
COMMENT ON TABLE witness_endings IS 'What requests were charged at their last figure, if nobody else ends them; until the ledger has their ending, a day at most.';
COMMENT ON COLUMN witness_endings.figures IS 'Charge, list price, tokens: the members of settlement.witness_lines.Figures, in their order.';
