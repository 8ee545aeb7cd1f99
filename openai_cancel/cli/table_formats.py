"""Tables as text, Markdown and CSV, printed row by row."""

import csv
import io
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol

from rich.cells import cell_len

from openai_cancel.cli.documents import to_json
from openai_cancel.cli.output import print_line, printable

COUNT = "responses"
"""The title of the last column."""

TOTAL = "in all"
"""The title of the last row."""

_FORMULA = ("=", "+", "-", "@")

_MARKUP = re.compile(r"[\\`*\[\]|~]|(?<![^\W_])_|_(?![^\W_])")
"""What Markdown would read as markup, such as the image of a server's message. Underscores inside of words are none."""


class PrintTable(Protocol):
    """Prints a table in one of the formats."""

    def __call__(self, titles: Sequence[str], rows: Callable[[], Iterable[Sequence[Any]]], note: str) -> None:
        """Print a table.

        Args:
            titles: the titles of the columns, without the last one.
            rows: starts an iteration over the rows: texts, and a count.
            note: a sentence below the table.
        """
        ...


def cell(value: object) -> str:
    """Return a JSON value as the text of a cell."""
    if value is None:
        return ""
    return value if isinstance(value, str) else to_json(value)


def print_text(titles: Sequence[str], rows: Callable[[], Iterable[Sequence[Any]]], note: str) -> None:
    """Print a table in columns. See `PrintTable`."""
    widths = [0] * (len(titles) + 1)
    for row in _all(titles, rows):
        widths = [max(width, cell_len(text)) for width, text in zip(widths, row, strict=True)]
    for *texts, count in _all(titles, rows):
        cells = [text + " " * (width - cell_len(text)) for text, width in zip(texts, widths, strict=False)]
        print_line("  ".join([*cells, count.rjust(widths[-1])]))
    if note:
        print_line(f"\n{note}")


def print_markdown(titles: Sequence[str], rows: Callable[[], Iterable[Sequence[Any]]], note: str) -> None:
    """Print a table in the Markdown of GitHub. See `PrintTable`."""
    for number, row in enumerate(_all(titles, rows)):
        print_line(f"| {' | '.join(map(_escaped, row))} |")
        if number == 0:
            print_line(f"|{'---|' * len(titles)}---:|")
    if note:
        print_line(f"\n{note}")


def print_csv(titles: Sequence[str], rows: Callable[[], Iterable[Sequence[Any]]], note: str) -> None:  # noqa: ARG001 - a table of CSV has no place for it
    """Print a table with commas and a header, without the total. See `PrintTable`.

    A text that a spreadsheet would run as a formula gets an apostrophe in front: some texts come from a server. See
    https://owasp.org/www-community/attacks/CSV_Injection.
    """
    print_line(_record([*titles, COUNT]))
    for *texts, count in rows():
        safe = [f"'{text}" if text.startswith(_FORMULA) else text for text in map(printable, texts)]
        print_line(_record([*safe, count]))


TABLE_FORMATS: Mapping[str, PrintTable] = {"text": print_text, "markdown": print_markdown, "csv": print_csv}
"""The formats of tables, by name."""


def _all(titles: Sequence[str], rows: Callable[[], Iterable[Sequence[Any]]]) -> Iterator[list[str]]:
    """Yield the header, the rows and the total as texts for people."""
    yield [*map(printable, titles), COUNT]
    total = 0
    for *texts, count in rows():
        total += count
        words = (
            text.replace("_", " ") if title == "verdict" else text for title, text in zip(titles, texts, strict=True)
        )
        yield [*map(printable, words), f"{count:,}"]
    yield [TOTAL, *[""] * (len(titles) - 1), f"{total:,}"]


def _escaped(text: str) -> str:
    return _MARKUP.sub(r"\\\g<0>", text).replace("&", "&amp;").replace("<", "&lt;")


def _record(cells: Iterable[object]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="").writerow(cells)
    return text.getvalue()
