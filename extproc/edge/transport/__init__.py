"""gRPC servers for Envoy's streams, exchangeable: ``port`` is the contract, ``grpcio`` the reference."""
