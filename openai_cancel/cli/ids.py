"""The ids of a run: from arguments, files and pipes. They are read only as fast as they are needed."""

import asyncio
import csv
import errno
import json
import os
import re
import stat
import sys
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, aclosing
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self

import attrs

from openai_cancel.cli.json_values import JsonValues, Line, NotJsonError
from openai_cancel.cli.text_files import CHUNK, NOT_TEXT, count_lines, decoder_of
from openai_cancel.wire import SEGMENT

ID_FIELDS = ("responseid", "id")
"""The names of an id in JSON and in the header of a table, in order of preference and as `_plain_name` returns them."""

DELIMITERS = (",", ";", "\t", "|")
"""The delimiters that a table may have. Tools of databases write `|`."""

LINE_LIMIT = 2**24
"""The maximum number of characters in a line. A longer line is skipped."""

RECORD_LIMIT = 1000
"""The maximum number of lines in a record of a table, whose quoted fields may contain line breaks."""

ID_LIMIT = 4096
"""The maximum number of characters in an id. Real ids have up to 465."""

COLUMN_LIMIT = 1000
"""The maximum number of characters in another column of a row. Longer text is cut, and a longer JSON value left out."""

_NOTHING = frozenset({"", "null", "none", "nan", "undefined", "\\n"})
"""What programs write for an id that is missing: jq, databases, Python, pandas, JavaScript, PostgreSQL's `COPY`."""

_UNDECODABLE = "\ufffd"  # the decoder's replacement for bytes that are not text

_NO_ID = re.compile(
    r"""["'`\xab\xbb\u2018\u2019\u201c\u201d(<{[]|.*(?:["'`\xab\xbb\u2018\u2019\u201c\u201d,;:]\Z|\s|://)|[\W_]*\Z"""
)
"""What is no id although it could be sent: text in quotes or with a comma behind it, a URL, a line of a frame.

The server would answer that it does not know the id, while the response runs on.
"""

_FRAME = re.compile(r"[-+|=: ]*[-=]{2}[-+|=: ]*|\([0-9]+ rows?\)|[0-9]+ rows? in set.*")
"""A line that is drawn in a table, or the number of rows below it, as psql, mysql and sqlite3 print them."""

_SEPARATOR = re.compile(r'"?sep=(.)"?', re.IGNORECASE)  # the first line of a table that Excel reads

csv.field_size_limit(LINE_LIMIT)  # the default is 131,072 characters, and a field may hold a whole document


_NO_COLUMNS: Mapping[str, Any] = {}

_NO_HEADER = "looks like a table, but the first line has no column id or response_id"


@attrs.frozen
class Row:
    """A line with an id.

    Attributes:
        response_id: the id.
        columns: the other columns of a table, or the other fields of a JSON object.
    """

    response_id: str
    columns: Mapping[str, Any] = _NO_COLUMNS


@attrs.frozen
class BadLine:
    """A line without a usable id.

    Attributes:
        number: the number of the line, from 1.
        problem: the reason.
        columns: as for `Row`.
        is_blank: whether the id is blank, for example because the job of the row never began.
        file: the title of its file.
    """

    number: int
    problem: str
    columns: Mapping[str, Any] = _NO_COLUMNS
    is_blank: bool = False
    file: str = ""

    def describe(self) -> str:
        """Return the place and the problem in words."""
        place = f"{self.file}, line {self.number}:" if self.number else self.file
        return f"{place} {self.problem}"


class IdReader:
    """A reader of the ids in one file: one id per line, JSON, or a table (CSV) with a header. It does no I/O.

    JSON may be one value per line, an array, or indented.

    Blank lines and lines that begin with `#` are skipped. A bad line does not affect other lines.
    """

    def __init__(self) -> None:
        self._number = 0
        self._any = False  # whether a line with content was read
        self._delimiters: tuple[str, ...] = DELIMITERS
        self._values = JsonValues()
        self._delimiter = ""
        self._column = -1  # the column of the ids, if the file is a table
        self._names: list[str] = []  # of all columns
        self._header: list[Line] = []  # the lines of an incomplete header
        self._record: list[Line] = []  # the lines of an incomplete record of the table

    def read(self, text: str) -> Iterator[Row | BadLine]:
        """Yield the ids in a line, and in the records of a table that it completes."""
        self._number += 1
        if len(text) > LINE_LIMIT:
            yield BadLine(self._number, f"has more than {LINE_LIMIT:,} characters; write one id or object per line")
        else:
            # A byte order mark is in the middle if files were put together.
            yield from self._read((self._number, text.removeprefix("\ufeff").removesuffix("\r")))

    def _read(self, line: Line) -> Iterator[Row | BadLine]:
        text = line[1]
        if self._column >= 0:
            yield from self._read_table([line], RECORD_LIMIT)
        elif self._header:
            yield from self._read_header(line)
        elif self._values.is_open or JsonValues.begins(text.strip()):
            self._any = True
            yield from self._read_values(line)
        elif self._any:
            yield from self._read_line(line)
        elif separator := _SEPARATOR.fullmatch(text):
            self._delimiters = separator[1], *DELIMITERS
        elif _has_content(text):
            self._any = True
            yield from self._read_header(line)

    def end(self) -> Iterator[Row | BadLine]:
        """Yield the ids in what is left at the end of the file."""
        if self._values.is_open:
            yield from self._give_up()
        if self._header:
            yield from self._give_up_header()
        lines, self._record = self._record, []
        yield from self._read_table(lines, 1)

    def _read_header(self, line: Line) -> Iterator[Row | BadLine]:
        """Read a line of what may be the header of a table, whose titles may contain line breaks, as Excel has them."""
        self._header.append(line)
        texts = [text for _, text in self._header]
        is_open = self._is_open(texts)
        if not is_open and self._is_header(texts):
            self._header = []
        elif not is_open or len(texts) >= RECORD_LIMIT or sum(map(len, texts)) > LINE_LIMIT:
            yield from self._give_up_header()

    def _give_up_header(self) -> Iterator[Row | BadLine]:
        """Read the lines one by one, as they are no header together. The first one may still be a header."""
        (first, *rest), self._header = self._header, []
        if not self._is_header([first[1]]):
            yield from self._read_line(first)
        for line in rest:
            yield from self._read(line)

    def _is_open(self, texts: Sequence[str]) -> bool:
        """Return whether lines end within quotes."""
        if len(texts) > 1 and '"' not in texts[-1]:
            return True  # only a quote can end a title with line breaks
        for delimiter in self._delimiters:
            try:
                next(csv.reader(_with_breaks(texts), delimiter=delimiter, strict=True))
            except csv.Error as error:
                if "end of data" in str(error):
                    return True
        return False

    def _is_header(self, texts: Sequence[str]) -> bool:
        for delimiter in self._delimiters:
            reader = csv.reader(_with_breaks(texts), delimiter=delimiter)
            try:
                titles = [" ".join(map(str.strip, title.strip().splitlines())) for title in next(reader)]
            except csv.Error:  # for example a carriage return in the middle
                return False
            names = [_plain_name(title) for title in titles]
            for field in ID_FIELDS:
                if field in names and reader.line_num == len(texts):
                    self._delimiter, self._column, self._names = delimiter, names.index(field), titles
                    return True
        return False

    def _read_values(self, line: Line) -> Iterator[Row | BadLine]:
        try:
            for number, text in self._values.read(line):
                yield from self._read_json(number, text)
        except NotJsonError:
            yield from self._give_up()

    def _give_up(self) -> Iterator[Row | BadLine]:
        """Report the line where a value begins that does not end, and read the other lines one by one."""
        (number, _), *lines = self._values.give_up()
        yield BadLine(number, "is not JSON")
        for line in lines:
            yield from self._read_line(line)

    def _read_line(self, line: Line) -> Iterator[Row | BadLine]:
        if _has_content(text := line[1].strip()):
            yield from self._read_json(line[0], text) if text[0] in '{["' else [self._read_plain(line[0], text)]

    def _read_plain(self, number: int, text: str) -> Row | BadLine:
        text = re.split(r"\s#", text, maxsplit=1)[0].rstrip()
        if self._has_delimiter(text):
            return BadLine(number, _NO_HEADER)
        if len(text.split()) > 1:
            return BadLine(number, "contains a space; write one id per line")
        return _checked(number, text)

    def _read_json(self, number: int, text: str) -> Iterator[Row | BadLine]:
        try:
            document: Any = json.loads(text)
        except (ValueError, RecursionError):
            is_table = text.startswith('"') and self._has_delimiter(text)
            yield BadLine(number, _NO_HEADER if is_table else "is not JSON")
            return
        # The answer of a server that lists its responses.
        is_page = document.__class__ is dict and document.get("object") == "list"
        listed: Any = document.get("data") if is_page else None
        for value in listed if listed.__class__ is list else [document]:
            yield _read_value(number, value)

    def _has_delimiter(self, text: str) -> bool:
        return any(delimiter in text for delimiter in self._delimiters)

    def _read_table(self, lines: list[Line], line_limit: int) -> Iterator[Row | BadLine]:
        while lines:
            self._record.append(lines.pop(0))
            number, first = self._record[0]
            full = len(self._record) >= line_limit or sum(len(text) for _, text in self._record) > LINE_LIMIT
            if len(self._record) > 1 and '"' not in self._record[-1][1] and not full:
                continue  # only a quote can end a field with line breaks
            try:
                record = _with_breaks([text for _, text in self._record])
                cells = next(csv.reader(record, delimiter=self._delimiter, strict=True))
            except csv.Error as error:
                if "end of data" in str(error):
                    if not full:
                        continue
                    error = csv.Error("a quote is not closed")
                yield BadLine(number, f"is not a record of a table: {error}")
                lines = self._record[1:] + lines  # each of these may start a record
                self._record = []
                continue
            self._record = []
            cells = [cell.strip() for cell in cells]
            if any(cells) and not first.startswith("#") and not _FRAME.fullmatch(first):
                yield from self._read_record(number, cells)

    def _read_record(self, number: int, cells: list[str]) -> Iterator[Row | BadLine]:
        if len(cells) <= self._column:
            yield BadLine(number, f"has {len(cells)} columns; the id should be in column {self._column + 1}")
            return
        if _plain_name(cells[self._column]) in ID_FIELDS:  # the header of the next table in the file
            self._names = cells
            return
        columns = {
            name: cell[:COLUMN_LIMIT]
            for place, (name, cell) in enumerate(zip(self._names, cells, strict=False))
            if place != self._column and name and cell
        }
        yield _checked(number, cells[self._column], columns)


def _with_breaks(texts: Sequence[str]) -> list[str]:
    return [f"{text}\n" for text in texts]


def _has_content(text: str) -> bool:
    text = text.strip()
    return bool(text) and not text.startswith("#") and not _FRAME.fullmatch(text)


def _plain_name(name: str) -> str:
    """Return the name of a field or a column in one spelling: `Response ID`, `responseId` and `response_id` are one."""
    return name.replace("_", "").replace("-", "").replace(" ", "").lower()


def _read_value(number: int, value: Any) -> Row | BadLine:
    if value.__class__ is list:
        return BadLine(number, "is a list inside a list; write one object or one id per line")
    if value.__class__ is not dict:
        return _checked(number, value)
    names = {_plain_name(name): name for name in reversed(value)}
    for field in ID_FIELDS:
        if field in names:
            found = value.pop(names[field])
            return _checked(number, found, _fields(value))
    return BadLine(number, "has no field id or response_id", _fields(value))


def _checked(number: int, found: object, columns: Mapping[str, Any] = _NO_COLUMNS) -> Row | BadLine:
    if found is None or (isinstance(found, str) and found.strip().lower() in _NOTHING):
        return BadLine(number, "has no id", columns, is_blank=True)
    if not isinstance(found, str) or not can_be_id(found):
        return BadLine(number, f"{ascii(found)[:80]} cannot be a response id", columns)
    return Row(found, columns)


def can_be_id(text: str) -> bool:
    """Return whether a text can be the id of a response. Servers create ids of nearly any form."""
    if len(text) > ID_LIMIT or text.lower() in _NOTHING:
        return False
    is_text = text.isprintable() and _UNDECODABLE not in text
    return is_text and SEGMENT.fullmatch(text) is not None and _NO_ID.match(text) is None


def _fields(document: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the fields of a JSON object that are not too long."""
    cut = {name: value[:COLUMN_LIMIT] if isinstance(value, str) else value for name, value in document.items()}
    return {name: value for name, value in cut.items() if isinstance(value, str) or _is_short(value)}


def _is_short(value: object) -> bool:
    return not isinstance(value, list | dict) or len(json.dumps(value)) <= COLUMN_LIMIT


def check_arguments(ids: Sequence[str]) -> None:
    """Refuse arguments that cannot be ids.

    Raises:
        ValueError: one cannot be an id.
    """
    for name in ids:
        if not can_be_id(name):
            raise ValueError(f"{name!a} cannot be a response id")


class Source:
    """All ids of a run, in order: the arguments, then the files.

    Args:
        ids: the ids that are arguments.
        files: the paths of files. `-` is standard input.
        complain: called with each bad line. One with the number 0 is about the whole file.
        skip: called with each id. Returns whether to skip it.
        see: called with each row of a file before its id is yielded.

    Attributes:
        total: the number of arguments and lines, or None while it is not known, as with a pipe.
        yielded: the number of ids yielded so far.
        skipped: the number of lines so far that had no usable id, or one to skip.
        ended: whether `end` was called.

    Raises:
        ValueError: an argument cannot be an id.
        OSError: a file cannot be opened.
    """

    def __init__(
        self,
        ids: Sequence[str],
        files: Sequence[str],
        *,
        complain: Callable[[BadLine], None],
        skip: Callable[[str], bool],
        see: Callable[[Row], None] | None = None,
    ) -> None:
        self._ids = ids
        check_arguments(ids)
        self._complain = complain
        self._skip = skip
        self._see = see
        self._ready = asyncio.Event()
        self.ended: bool = False
        self.yielded: int = 0
        self.skipped: int = 0
        with ExitStack() as opened:
            self._files = [
                (name, opened.enter_context(_open(name)))
                for name in dict.fromkeys(files)  # each file once
            ]
            counts = [_count_lines(file) for _, file in self._files]
            self._opened = opened.pop_all()
        self.total: int | None = None if None in counts else len(ids) + sum(filter(None, counts))

    def reads(self, file: int) -> bool:
        """Return whether an open file is among the files of ids. A run that appends to it would never end."""
        written = os.fstat(file)
        return any(os.path.samestat(written, os.fstat(read.fileno())) for _, read in self._files)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._opened.close()

    def end(self) -> None:
        """Stop yielding ids."""
        self.ended = True
        self._ready.set()

    async def read(self) -> AsyncGenerator[str, None]:
        """Yield the ids one by one."""
        for name in self._ids:
            if self.ended:
                return
            if self._skip(name):
                self.skipped += 1
            else:
                self.yielded += 1
                yield name
        for name, file in self._files:
            async with aclosing(self._read_file(name, file)) as found:
                async for response_id in found:
                    self.yielded += 1
                    yield response_id

    async def _read_file(self, name: str, file: BinaryIO) -> AsyncGenerator[str, None]:
        reader = IdReader()
        async with aclosing(self._lines(name, file)) as lines:
            async for line in lines:
                self.skipped += 1
                for response_id in self._check(name, reader.read(line)):
                    self.skipped -= 1
                    yield response_id
        for response_id in self._check(name, reader.end()):
            self.skipped -= 1
            yield response_id

    def _check(self, name: str, found: Iterator[Row | BadLine]) -> Iterator[str]:
        for item in found:
            if self.ended:
                return
            if isinstance(item, BadLine):
                self._complain(attrs.evolve(item, file=_title(name)))
            elif not self._skip(item.response_id):
                if self._see:
                    self._see(item)
                yield item.response_id

    async def _lines(self, name: str, file: BinaryIO) -> AsyncGenerator[str, None]:
        decoder = None
        rest = ""
        too_long = False  # whether the beginning of this line was already yielded
        while not self.ended:
            try:
                chunk = await self._chunk(file)
            except OSError as error:
                problem = f"cannot be read to the end: {error.strerror}"
                self._complain(BadLine(0, problem, file=_title(name)))
                return
            if decoder is None and (decoder := decoder_of(chunk)) is None:
                self._complain(BadLine(0, NOT_TEXT, file=_title(name)))
                return
            *lines, rest = (rest + decoder.decode(chunk, not chunk)).split("\n")
            for line in lines:
                if not too_long:
                    yield line
                too_long = False
            if len(rest) > LINE_LIMIT:
                if not too_long:
                    yield rest
                too_long, rest = True, ""
            if not chunk:
                break
        if rest and not self.ended:
            yield rest

    async def _chunk(self, file: BinaryIO) -> bytes:
        """Return the next bytes of a file without blocking the event loop, or nothing at the end of the file."""
        loop = asyncio.get_running_loop()
        self._ready.clear()
        try:
            loop.add_reader(file, self._ready.set)
        except (PermissionError, NotImplementedError):
            await asyncio.sleep(0)  # a regular file is always ready to read
        else:
            try:
                await self._ready.wait()
            finally:
                loop.remove_reader(file)
        return b"" if self.ended else os.read(file.fileno(), CHUNK)


def _title(name: str) -> str:
    return "standard input" if name == "-" else name


def _open(name: str) -> BinaryIO:
    if name != "-":
        return Path(name).open("rb", buffering=0)
    if sys.stdin is None:
        raise OSError(errno.EBADF, "closed", _title(name))
    return open(0, "rb", buffering=0, closefd=False)


def _count_lines(file: BinaryIO) -> int | None:
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        return None
    return count_lines(file)
