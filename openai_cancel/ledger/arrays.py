"""Rows as arrays, for the statements of PostgreSQL that write many rows at once.

Poolers share connections, so there are no prepared statements, and PostgreSQL parses and plans a statement each time it
is executed. For the statements of a ledger, that takes longer than writing a row.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any


def array_name(parameter: str) -> str:
    """Return the name of the parameter of a statement that has the values of a parameter of all rows."""
    return f"{parameter}_array"


def arrays(rows: Sequence[Mapping[str, Any]], key: str) -> Iterator[dict[str, list[Any]]]:
    """Yield the parameters of the executions of a statement that together do the same as one execution for each row.

    A statement cannot change a row twice, so what else is to be done to it is left to the next execution. A repetition
    is left out: the statements of a ledger that take arrays do no more if they are repeated.

    Args:
        rows: the parameters for each row. All have the same names.
        key: the name of the parameter that identifies a row.
    """
    rounds: list[dict[str, Mapping[str, Any]]] = []
    counts: dict[str, int] = {}
    for row in rows:
        digest = row[key]
        count = counts.get(digest, 0)
        if count and rounds[count - 1][digest] == row:
            continue
        if count == len(rounds):
            rounds.append({})
        rounds[count][digest] = row
        counts[digest] = count + 1
    for chosen in rounds:
        yield {array_name(name): [row[name] for row in chosen.values()] for name in rows[0]}
