"""Tables and JSON for a terminal. Text of pages is data: what a terminal would obey is shown, not sent.

In: rows of plain values. Out: lines on standard output; cut to a screen in tables, whole in JSON and CSV.
"""

import csv
import json
import math
import re
import sys
from collections.abc import Iterable, Sequence
from decimal import Decimal
from itertools import islice
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

CELL = 160  # characters of a cell that are shown
NARROW = 12  # characters of a column, at least, on the average


def printable(text: str) -> str:
    """Text without a character that a terminal obeys or that is not seen: an escape (`\\x1b`, `\\u202e`) in its place, ⏎ for
    the end of a line. Such are control characters, marks of direction and all else that `str.isprintable` denies."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else "⏎" if c == "\n" else c.encode("unicode_escape").decode() for c in text)


def print_table(
    title: str, columns: Sequence[str], rows: Iterable[Sequence[Any]], *, most: int, note: str = "", right: Sequence[int] = ()
) -> None:
    """Prints a table of `most` rows at most (0: of all), and says if there are more. `right`: columns of numbers.

    Where the screen is too narrow for the columns, each row is printed as a list of them.
    """
    console = Console()
    listed = len(columns) * NARROW > console.width
    table = Table(title=Text(printable(title)), title_justify="left", title_style="bold", box=SIMPLE_HEAD, pad_edge=False)
    heads = [Text(printable(name)) for name in columns]
    for number, name in enumerate([Text(), Text()] if listed else heads):
        table.add_column(name, justify="right" if number in right and not listed else "left", overflow="fold")
    table.show_header = not listed
    remaining = iter(rows)
    for row in islice(remaining, most or None):
        cells = [Text(_cell(value)) for value in row]
        if listed:
            for name, cell in zip(heads, cells, strict=True):
                table.add_row(name, cell)
            table.add_section()
        else:
            table.add_row(*cells)
    console.print(table)
    if next(remaining, None) is not None:
        note = f"{note} The first {most:,} rows; rows=0 shows all.".strip()
    if note:
        console.print(Text(printable(note)), style="dim")


def print_json(value: Any) -> None:
    """Prints a value as JSON."""
    print(json_text(value, indent=1))


def print_rows(columns: Sequence[str], rows: Iterable[Sequence[Any]], form: str) -> None:
    """Prints rows as they come: `json`, a list of objects, one a line; `csv`, with a line of headings."""
    if form == "csv":
        writer = csv.writer(sys.stdout, lineterminator="\n")
        writer.writerow(columns)
        for row in rows:
            cells = ["" if value is None else value if isinstance(value, str) else json_text(value) for value in row]
            writer.writerow(map(printable, cells) if sys.stdout.isatty() else cells)
        return
    separator = "["
    for row in rows:
        sys.stdout.write(f"{separator}\n{json_text(dict(zip(columns, row, strict=True)))}")
        separator = ","
    print("[]" if separator == "[" else "\n]")


def json_text(value: Any, indent: int | None = None) -> str:
    """A value as JSON (RFC 8259), with all that is not printable in escapes; numbers that JSON has not are null."""
    text = json.dumps(_plain(value), ensure_ascii=False, allow_nan=False, indent=indent)
    return re.sub(r"[^\n -~]", lambda match: match[0] if match[0].isprintable() else json.dumps(match[0])[1:-1], text)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(name): _plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, Decimal):
        return _plain(float(value))
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if value is None or isinstance(value, str | int) else str(value)


def _cell(value: Any) -> str:
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    if isinstance(value, float | Decimal):
        number = float(value)
        return f"{number:,.1f}" if abs(number) >= 1000 else f"{number:.4g}"
    text = "" if value is None else value if isinstance(value, str) else json_text(value)
    return printable(text[:CELL]) + ("…" if len(text) > CELL else "")
