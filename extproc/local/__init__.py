"""Everything on one machine: launchers for Valkey, PostgreSQL and Envoy, and the vLLM simulator."""
