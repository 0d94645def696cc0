-- What policies made of a request, and what shadow mode would have refused.
ALTER TABLE requests ADD COLUMN policies text[] NOT NULL DEFAULT '{}', ADD COLUMN would_deny text NOT NULL DEFAULT '';
COMMENT ON COLUMN requests.policies IS 'Settings of section policy that made the figure or let the request in, as name=value.';
COMMENT ON COLUMN requests.would_deny IS 'Of a shadow request: why it would have been refused; "" = it would not.';
CREATE INDEX requests_would_deny ON requests (created_at, would_deny) WHERE would_deny <> '';
