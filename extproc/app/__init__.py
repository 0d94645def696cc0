"""The processes. `compose` alone names concrete adapters."""
