"""Report lines without a usable id: the first ones one by one, the others in a summary."""

from collections import Counter

from openai_cancel.cli.ids import BadLine
from openai_cancel.cli.output import complain

SHOWN = 20
"""The number of bad lines that are shown one by one."""

NUMBERED = 5
"""The number of lines of a file with a blank id whose numbers are shown."""


class BadLines:
    """Counts and reports the lines without a usable id of a run."""

    def __init__(self) -> None:
        self.count: int = 0
        self._bad = 0
        self._blank: Counter[str] = Counter()  # by file
        self._numbers: dict[str, list[str]] = {}

    def note(self, line: BadLine) -> None:
        """Count a line, and report it unless there are many. A blank id is reported at the end."""
        self.count += 1
        if line.is_blank:
            self._blank[line.file] += 1
            numbers = self._numbers.setdefault(line.file, [])
            if len(numbers) < NUMBERED:
                numbers.append(f"{line.number}")
            return
        self._bad += 1
        if self._bad <= SHOWN:
            complain(line.describe())

    def sum_up(self, rest: str) -> None:
        """Report what was not reported yet.

        Args:
            rest: where to find all bad lines.
        """
        if self._bad > SHOWN:
            complain(f"{self._bad - SHOWN:,} more bad lines are not shown: {rest}")
        for file, count in self._blank.items():
            numbers = self._numbers[file]
            lines = ", ".join(numbers) + (", …" if count > len(numbers) else "")
            rows = f"{count:,} rows have no id" if count > 1 else "1 row has no id"
            complain(f"{file}: {rows}: line{'s' * (count > 1)} {lines}")
