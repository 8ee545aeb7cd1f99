"""The numbers of a ledger: open, overdue, by state, account and server; for people, JSON and Prometheus."""

import pytest
from conftest import KEY
from ledger_database import execute, lapse, without_table
from ledgers import open_calls
from prometheus_client.parser import text_string_to_metric_families
from sqlalchemy import update

from openai_cancel import AsyncSession, LedgerError, SessionStateError
from openai_cancel.emulator import Emulator
from openai_cancel.ledger import Group, Ledger, Stats
from openai_cancel.ledger.table import RESPONSES


@pytest.fixture
async def filled(url: str, server: Emulator) -> str:
    """A ledger with two accounts on two servers."""
    async with Ledger(url) as ledger:
        for account, base_url, names in (
            ("a", server.base_url, ["1", "2", "3"]), ("b", server.base_url, ["4"]), ("a", "https://h.example/v1", ["5"])
        ):  # fmt: skip
            session = AsyncSession(api_key=KEY, base_url=base_url, account=account)
            await ledger.track_many([f"resp_{name}" for name in names], session=session, ttl=3600)
            if names[0] == "1":
                await ledger.release("resp_3", session=session)
    await lapse(url, "resp_1", "resp_5")
    await execute(
        url, update(RESPONSES).where(RESPONSES.c.response_id == "resp_1").values(created=RESPONSES.c.created - 100)
    )
    return url


@pytest.mark.parametrize("kind", ["async", "blocking"])
async def test_all_accounts_are_counted(kind: str, filled: str, server: Emulator) -> None:
    async with open_calls(kind, filled, server) as calls:
        stats = await calls.stats()
        open_ones = await calls.stats(include_ended=False)
        entries = await calls.entries(overdue=True)
    assert (stats.open, stats.overdue, stats.by_state) == (4, 2, {"tracked": 4, "released": 1})
    assert (open_ones.open, open_ones.overdue, open_ones.by_state) == (4, 2, {"tracked": 4})
    found = {(group.account, group.base_url, group.state): (group.count, group.overdue) for group in stats.groups}
    assert found == {
        ("a", server.base_url, "tracked"): (2, 1),
        ("a", server.base_url, "released"): (1, 0),
        ("b", server.base_url, "tracked"): (1, 0),
        ("a", "https://h.example/v1", "tracked"): (1, 1),
    }
    assert 100 <= stats.oldest < 200
    assert stats.overdue_for > 1e9  # since 1970
    assert sorted(entry.response_id for entry in entries) == ["resp_1", "resp_5"]


async def test_the_others_can_be_looked_at(filled: str, server: Emulator) -> None:
    async with Ledger(filled) as ledger:
        stats = await ledger.stats()
    others = stats.others("a", server.base_url)
    assert (others.open, others.overdue) == (2, 1)
    assert stats.overdue_longer_than(60).overdue == 2
    assert stats.overdue_longer_than(1e11) == Stats(())


async def test_an_empty_ledger_has_zeros(url: str) -> None:
    async with Ledger(url) as ledger:
        stats = await ledger.stats()
    assert stats.to_dict() == {
        "open": 0, "overdue": 0, "overdue_for": 0.0, "oldest": 0.0, "by_state": {}, "groups": []
    }  # fmt: skip
    with pytest.raises(SessionStateError):
        await ledger.stats()


async def test_a_sum_has_the_groups_as_documents(filled: str) -> None:
    async with Ledger(filled) as ledger:
        document = (await ledger.stats()).to_dict()
    assert document["groups"][0].keys() == {*Group.__annotations__}


def test_the_text_for_prometheus_is_read_by_its_own_client() -> None:
    odd = 'a "b" \\ c\nd'
    groups = [
        Group(account=odd, base_url="h", state="tracked", count=12345678, overdue=3, oldest=5.5, overdue_for=1.5),
        Group(account=odd, base_url="h", state="cancelled", count=1, overdue=0, oldest=99.0, overdue_for=0.0),
    ]
    families = [*text_string_to_metric_families(Stats(tuple(groups)).to_prometheus())]
    assert {family.type for family in families} == {"gauge"}
    samples = {
        (family.name.removeprefix("openai_cancel_ledger_"), sample.labels.get("state")): sample.value
        for family in families
        for sample in family.samples
    }
    assert {sample.labels["account"] for family in families for sample in family.samples} == {odd}
    assert samples == {
        ("responses", "tracked"): 12345678.0,
        ("responses", "cancelled"): 1.0,
        ("overdue", None): 3.0,
        ("overdue_seconds", None): 1.5,
        ("oldest_open_seconds", None): 5.5,
    }


async def test_a_failing_database_is_an_error(url: str) -> None:
    async with Ledger(url) as ledger, without_table(url):
        with pytest.raises(LedgerError):
            await ledger.stats()
