"""Our own transport for one client, Envoy: HTTP/2 and gRPC framing without IO (``connection``), and a thin asyncio protocol over it."""
