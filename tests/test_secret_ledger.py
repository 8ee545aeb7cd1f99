"""The password in the URL of a ledger's database: no traceback shows it."""

import traceback

import pytest
from postgres import Postgres

from openai_cancel import ConfigurationError, LedgerError
from openai_cancel.ledger import Ledger

MARKER = "M4RK3R0FAPASSW0RD"


def shown(error: BaseException) -> str:
    """Return the traceback of an error, with all its locals, and the attributes of its causes."""
    lines = [*traceback.TracebackException.from_exception(error, capture_locals=True).format()]
    link: BaseException | None = error
    while link := link.__cause__ or link.__context__:
        lines.append(repr(vars(link)))
    return "".join(lines)


async def test_a_database_that_cannot_be_reached_does_not_show_the_password(unused_tcp_port: int) -> None:
    ledger = Ledger(f"postgresql://user:{MARKER}@127.0.0.1:{unused_tcp_port}/ledger")
    with pytest.raises(LedgerError) as caught:
        await ledger.open()
    del ledger
    assert MARKER not in shown(caught.value)
    assert caught.value.__cause__ is not None


async def test_a_password_that_is_refused_is_not_shown(postgres: Postgres) -> None:
    _, _, place = postgres.url.partition("@")
    with pytest.raises(LedgerError) as caught:
        await Ledger(f"postgresql://nobody:{MARKER}@{place}").open()
    assert MARKER not in shown(caught.value)


@pytest.mark.parametrize(
    "place", ["host:port/ledger", "host/ledger?x", "host/ledger", "host/ledger?sslmode=no", "g:1,h:2/d?host=i"]
)
def test_a_url_that_is_refused_is_not_shown(place: str) -> None:
    for scheme in ("postgresql", "postgresql+asyncpg", "mysql", "sqlite"):
        with pytest.raises(ConfigurationError) as caught:
            Ledger(f"{scheme}://user:{MARKER}@{place}", lease=-1)
        assert MARKER not in shown(caught.value)
