"""What carries Envoy's messages to the driver. Nothing above it knows which one it is."""
