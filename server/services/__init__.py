"""One file per gRPC service, between the wire and the server's own objects."""
