"""The service: trains and serves models over gRPC. Run it with `python -m server`."""
