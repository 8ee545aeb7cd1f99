"""The fate of a row, as its former owner sees it."""

import pytest

from openai_cancel import Verdict
from openai_cancel.ledger.fate import Fate, decide_fate
from openai_cancel.ledger.table import RowState

MINE, THEIRS = "here:1:aa", "there:2:bb"


def sighting(state: str, owner: str | None = None, lease: float | None = None, attempts: int = 0, reason=None):
    return RowState("digest", state, owner, attempts, lease, None, None, reason)


@pytest.mark.parametrize(
    ("row", "fate"),
    [
        (None, Fate.MISSING),
        (sighting("tracked", MINE, 5), Fate.OURS),
        (sighting("tracked", MINE, -5), Fate.OURS),
        (sighting("tracked", THEIRS, 5), Fate.SHARED),
        (sighting("tracked", THEIRS, -5), Fate.LEFT),
        (sighting("released"), Fate.LEFT),
        (sighting("released", reason="release"), Fate.RELEASED),
        (sighting("stopping", THEIRS, 5, 1, "max_age"), Fate.TAKEN),
        (sighting("stopping", THEIRS, -5, 1, "lease"), Fate.TAKEN),
        (sighting("tracked", None, 30, 1, "lease"), Fate.TAKEN),
        (sighting("tracked", None, 0, 0, "lease"), Fate.LEFT),  # given back before it was tried
        (sighting("tracked", None, 0, 0, "max_age"), Fate.TAKEN),
        (sighting("tracked", None, 900), Fate.LEFT),  # the time of a track
        *((sighting(str(verdict), attempts=1), Fate.ENDED) for verdict in Verdict),
    ],
)
def test_the_fate_of_a_row_follows_from_its_state_its_owner_and_its_lease(row: RowState | None, fate: Fate) -> None:
    assert decide_fate(row, MINE) is fate
