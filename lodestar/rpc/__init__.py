"""gRPC for every service: servers, interceptors, batching, client channels and the translation of records."""
