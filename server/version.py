"""Which build of the service this is."""

from importlib import metadata


def version() -> str:
    """The version of the installed distribution; `source` if it runs from a checkout."""
    try:
        return metadata.version("nanogpt-service")
    except metadata.PackageNotFoundError:
        return "source"
