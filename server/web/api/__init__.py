"""The JSON API below `/api/`: one file a noun. HTTP <-> the same domain objects as gRPC's services.

Answers and errors are described in docs/dashboard.md.
"""
