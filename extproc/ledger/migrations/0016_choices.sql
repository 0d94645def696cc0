-- Several answers to one prompt: who explains a charge, or compares our tokens with a backend's, must know of them.

ALTER TABLE requests ADD COLUMN choices integer NOT NULL DEFAULT 0;
-- Not looked for in old rows: there it is 0.
ALTER TABLE requests ADD CONSTRAINT requests_choices_check CHECK (choices >= 0) NOT VALID;
COMMENT ON COLUMN requests.choices IS 'Answers to each prompt (n), where there are more than one. The prompt is charged once; vLLM counts it once for each.';
