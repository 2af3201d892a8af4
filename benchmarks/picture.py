"""Keeps a picture of results among the documents."""

from pathlib import Path

DOCS = Path(__file__).parent.parent / "docs"


def keep_picture(drawn: str | None, path: Path, missing: str) -> int:
    """Writes an SVG document, or prints what is missing; returns the exit code."""
    if drawn is None:
        print(missing)
        return 1
    path.write_text(drawn)
    print(f"written to {path}")
    return 0
