"""The one page: what runs here, as two tables. Plain HTML, every value escaped, nothing inline."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape


@dataclass(frozen=True, slots=True)
class Table:
    """A titled table of text."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    empty: str
    """What to say when there are no rows."""


STYLE = """\
:root { color-scheme: light dark; font: 16px/1.5 system-ui, sans-serif; }
body { max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
table { border-collapse: collapse; }
th, td { text-align: left; padding: .2rem 1.5rem .2rem 0; border-bottom: 1px solid #8884; }
td { font-variant-numeric: tabular-nums; overflow-wrap: anywhere; }
code { font-size: .95em; }
"""

ICON = """\
<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 16 16">\
<path d="M2 14V2l12 12V2" fill="none" stroke="#c63" stroke-width="3"/></svg>
"""


def render(version: str, grpc_address: str, tables: Iterable[Table]) -> str:
    """The page as HTML."""
    return f"""\
<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>nanogpt-service</title>
<link rel="icon" href="/icon.svg">
<link rel="stylesheet" href="/style.css">
</head>
<body>
<h1>nanogpt-service</h1>
<p>Trains GPT models and serves them while they train. Version {escape(version)}, gRPC on
<code>{escape(grpc_address)}</code>. See <a href="/metrics">/metrics</a> and
<a href="/healthz">/healthz</a>.</p>
{"".join(_table(table) for table in tables)}\
</body>
</html>
"""


def _table(table: Table) -> str:
    title = f"<h2>{escape(table.title)}</h2>\n"
    if not table.rows:
        return f"{title}<p>{escape(table.empty)}</p>\n"
    head = "".join(f'<th scope="col">{escape(column)}</th>' for column in table.columns)
    body = "".join(
        f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>\n" for row in table.rows
    )
    return f"{title}<table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{body}</tbody>\n</table>\n"
