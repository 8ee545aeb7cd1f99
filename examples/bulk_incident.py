"""Stop every response in a file after an incident: `bulk_incident.py IDS LEFT`.

The ids that could not be stopped are written to LEFT. Pass that file as IDS to try again.
"""

import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from openai_cancel import Session, Verdict

DONE = {Verdict.CANCELLED, Verdict.ALREADY_FINISHED, Verdict.NOT_FOUND}


def read_ids(path: Path) -> Iterator[str]:
    """Yield one id per line, without reading the whole file into memory."""
    with path.open() as lines:
        yield from filter(None, map(str.strip, lines))


def main(path: Path, left: Path) -> int:
    """Stop all responses as fast as the server allows, and return the exit status."""
    verdicts = Counter[Verdict]()
    with Session() as session, left.open("w") as file:
        for outcome in session.stop_many(read_ids(path), concurrency=128):
            verdicts[outcome.verdict] += 1
            if outcome.verdict not in DONE:
                print(outcome.response_id, file=file)
                print(outcome.response_id, outcome.verdict, outcome.error or "", file=sys.stderr)
    for verdict, count in verdicts.most_common():
        print(f"{count:8,} {verdict}")
    return int(bool(verdicts.keys() - DONE))


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), Path(sys.argv[2])))
