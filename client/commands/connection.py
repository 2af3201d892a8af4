"""The client that a command's options ask for."""

from client.arguments import Options
from client.client import Client


def connect(options: Options) -> Client:
    """A client of the server that --server, NANOGPT_SERVER or the default names."""
    return Client(options.text("server"))
