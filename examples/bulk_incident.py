"""An incident: far too much runs. `bulk_incident.py IDS LEFT` stops every id in a file, and lists what is left.

A second run may take the LEFT of the first for its IDS.
"""

import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from openai_cancel import Session, Verdict

OVER = {Verdict.CANCELLED, Verdict.ALREADY_FINISHED, Verdict.NOT_FOUND}


def ids(path: Path) -> Iterator[str]:
    """One id a line, read as they are needed: the file may be larger than the memory."""
    with path.open() as lines:
        yield from filter(None, map(str.strip, lines))


def main(path: Path, left: Path) -> int:
    """Stop them all, as fast as the server allows; give the exit status."""
    tally = Counter[Verdict]()
    with Session() as session, left.open("w") as again:
        for outcome in session.stop_many(ids(path), concurrency=128):
            tally[outcome.verdict] += 1
            if outcome.verdict not in OVER:
                print(outcome.response_id, file=again)
                print(outcome.response_id, outcome.verdict, outcome.error or "", file=sys.stderr)
    for verdict, count in tally.most_common():
        print(f"{count:8,} {verdict}")
    return int(bool(tally.keys() - OVER))


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), Path(sys.argv[2])))
