"""Envoy's side: messages ⇄ events and actions, transports, and the driver of one exchange."""
