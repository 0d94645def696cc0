-- Every unit that a price may be put on, and the tokens that a free quota has paid for. Nothing of them stands in an ordinary row.

ALTER TABLE requests
    ADD COLUMN cache_creation_tokens integer NOT NULL DEFAULT 0,
    ADD COLUMN image_tokens integer NOT NULL DEFAULT 0,
    ADD COLUMN audio_tokens integer NOT NULL DEFAULT 0,
    ADD COLUMN images integer NOT NULL DEFAULT 0,
    ADD COLUMN audio_ms integer NOT NULL DEFAULT 0,
    ADD COLUMN input_characters integer NOT NULL DEFAULT 0,
    ADD COLUMN output_characters integer NOT NULL DEFAULT 0,
    ADD COLUMN input_words integer NOT NULL DEFAULT 0,
    ADD COLUMN output_words integer NOT NULL DEFAULT 0,
    ADD COLUMN free_input integer NOT NULL DEFAULT 0,
    ADD COLUMN free_output integer NOT NULL DEFAULT 0;
-- Not looked for in old rows: there they are 0.
ALTER TABLE requests ADD CONSTRAINT requests_units_check CHECK (
    cache_creation_tokens BETWEEN 0 AND input_tokens - cached_tokens
    AND least(image_tokens, audio_tokens, images, audio_ms) >= 0
    AND least(input_characters, output_characters, input_words, output_words, free_input, free_output) >= 0) NOT VALID;
COMMENT ON COLUMN requests.cache_creation_tokens IS 'Of the input: written to a cache; cached_tokens were read from one.';
COMMENT ON COLUMN requests.image_tokens IS 'Of the input, cached ones included; so is audio_tokens.';
COMMENT ON COLUMN requests.images IS 'Images of the prompt, where their number is priced; so are milliseconds of audio, characters and words.';
COMMENT ON COLUMN requests.free_input IS 'Tokens of the prompt that a free quota has paid for; free_output: of the answer.';
