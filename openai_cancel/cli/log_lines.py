"""The documents in a log, whatever has become of the file since a run has written it."""

import codecs
import io
import json
from collections.abc import Callable, Iterator
from typing import Any

import orjson

from openai_cancel.cli.output import complain
from openai_cancel.models.fields import parse_exactly

LINE_LIMIT = 2**28
"""The maximum number of bytes of a line. A longer one is skipped. A line of `wait` has the whole response."""

_UTF16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


def read_documents(file: io.BufferedReader) -> Iterator[dict[str, Any] | None]:
    """Yield the document of each line of a log, or None for a line that is not JSON.

    A run that was killed can leave such a line. Blank lines and JSON that is no object are left out. Editors and shells
    may have given the file a byte order mark, or UTF-16.
    """
    for line in _utf16_lines(file) if file.peek(2)[:2] in _UTF16 else _lines(file):
        try:
            document = _parse(line)
        except (ValueError, RecursionError):
            if line.strip():
                yield None
            continue
        if isinstance(document, dict):
            yield document


def read_results(file: io.BufferedReader, skip: Callable[[], object]) -> Iterator[tuple[str, bool, dict[str, Any]]]:
    """Yield the id of each line of a log about a response, whether it is stopped, and the document of the line.

    Args:
        file: the log.
        skip: called for each line that is not JSON.
    """
    for document in read_documents(file):
        if document is None:
            skip()
            continue
        response_id, stopped = document.get("id"), document.get("stopped")
        if isinstance(response_id, str) and isinstance(stopped, bool):
            yield response_id, stopped, document


def report_skipped(count: int) -> None:
    """Say how many lines are not JSON, if there are any."""
    if count:
        words = "lines are left out, because they are" if count > 1 else "line is left out, because it is"
        complain(f"{count:,} {words} not JSON")


def _lines(file: io.BufferedReader) -> Iterator[bytes]:
    mark = codecs.BOM_UTF8
    while line := file.readline(LINE_LIMIT):
        is_whole = line.endswith(b"\n") or len(line) < LINE_LIMIT
        yield line.removeprefix(mark) if is_whole else b"too long"
        mark = b""
        while not is_whole:
            rest = file.readline(LINE_LIMIT)
            is_whole = rest.endswith(b"\n") or len(rest) < LINE_LIMIT


def _utf16_lines(file: io.BufferedReader) -> Iterator[bytes]:
    text = io.TextIOWrapper(file, "utf-16", errors="replace", newline="\n")
    try:
        while line := text.readline(LINE_LIMIT):
            yield line.encode()
    finally:
        text.detach()  # who has opened the file closes it


def _parse(line: bytes) -> Any:
    """Parse a line with exact integers.

    A server may have said what orjson does not read, such as half of a surrogate pair. The log has it all the same.
    """
    try:
        return parse_exactly(line)
    except orjson.JSONDecodeError:
        document = json.loads(line)
    text = json.dumps(document, ensure_ascii=False).encode(errors="surrogatepass").decode(errors="replace")
    return json.loads(text)
