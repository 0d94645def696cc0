-- A price of an account's own, beside that of its tier.
ALTER TABLE users ADD COLUMN price_factor integer NOT NULL DEFAULT 1000000 CHECK (price_factor BETWEEN 0 AND 1000000000);
COMMENT ON COLUMN users.price_factor IS 'Millionths; multiplies with the factors of tier and priority. Each request names the price that came of it.';
