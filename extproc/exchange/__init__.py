"""One HTTP request through Envoy, as a pure state machine: events in, actions out. Start with ``machine``."""
