"""Between the wire and the server's own objects: a file for each gRPC service, and for messages."""
