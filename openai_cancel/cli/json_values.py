"""JSON values that stretch over many lines, one by one: those of an array, or objects that are printed indented."""

import re
from collections.abc import Iterator
from typing import TypeAlias

VALUE_LIMIT = 2**24
"""The maximum number of characters in a value. Only the value that is being read is kept in memory."""

Line: TypeAlias = tuple[int, str]
"""The number of a line, from 1, and its text."""

_OPENING = re.compile(r'\{\s*\Z|\[\s*(?:["{\[\]]|\Z)')
_TOKEN = re.compile(r'"[^"\\]*+(?:\\.[^"\\]*+)*+"|["\[\]{},]')
_LINE_COST = 100  # a short line takes about as much memory as so many characters


class NotJsonError(Exception):
    """The lines since the beginning of the value cannot be JSON."""


class JsonValues:
    """A reader of the values in an array, and of single objects, that stretch over many lines. It does no I/O.

    It only finds where a value ends. Whether the value is JSON is for a parser to say.
    """

    def __init__(self) -> None:
        self._array = 0  # the number of the line where the array began, if there is one
        self._depth = 0  # the number of brackets that are open inside the value
        self._parts: list[str] = []  # the value so far
        self._lines: list[Line] = []  # the lines that it is in
        self._size = 0  # about the number of characters in them

    @property
    def is_open(self) -> bool:
        """Whether a value or an array has not ended."""
        return bool(self._array or self._parts)

    @staticmethod
    def begins(text: str) -> bool:
        """Return whether a line, without white space at its ends, begins an array or an indented object."""
        return _OPENING.match(text) is not None

    def read(self, line: Line) -> Iterator[Line]:
        """Yield the values that a line completes, with the numbers of the lines where they begin.

        Raises:
            NotJsonError: a string is not closed, a value is too long, or there is something after the end.
        """
        number, text = line
        begin = 0
        self._lines.append(line)
        for token in _TOKEN.finditer(text):
            mark = token[0]
            if mark == '"':
                raise NotJsonError
            if mark == "[" and not self.is_open and not self._depth:
                self._array, begin = number, token.end()
            elif mark in {"[", "{"}:
                self._depth += 1
            elif mark in {"]", "}"} and self._depth:
                self._depth -= 1
                if not self._depth and not self._array:
                    yield from self._take(text[begin : token.end()], line)
                    begin = token.end()
            elif mark in {"]", ","} and self._array and not self._depth:
                yield from self._take(text[begin : token.start()], line)
                begin = token.end()
                self._array = self._array if mark == "," else 0
        self._keep(text[begin:])

    def _take(self, last: str, line: Line) -> Iterator[Line]:
        value = "\n".join([*self._parts, last]).strip()
        number = self._lines[0][0]
        self._parts, self._lines, self._size = [], [line], 0
        if value:
            yield number, value

    def _keep(self, part: str) -> None:
        if not self._parts and not part.strip():
            self._lines = []
            return
        self._parts.append(part)
        self._size += len(part) + _LINE_COST
        if not (self._array or self._depth) or self._size > VALUE_LIMIT:
            raise NotJsonError

    def give_up(self) -> list[Line]:
        """Return the lines of what has not ended, at least the one where it began, and start anew."""
        lines = self._lines or [(self._array, "")]
        self._array = self._depth = self._size = 0
        self._parts, self._lines = [], []
        return lines
