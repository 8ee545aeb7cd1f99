"""A ledger in PostgreSQL with two roles: the tables belong to one, and services need no right to change them."""

from collections.abc import AsyncIterator

import pytest
from conftest import KEY
from ledger_database import execute
from ledgers import open_calls, open_session, states, sweep
from postgres import Postgres
from roles import OWNER, SERVICE, Roles, quoted, two_roles

from openai_cancel import AsyncSession, ConfigurationError, LedgerError
from openai_cancel.emulator import Emulator
from openai_cancel.ledger import Ledger

TABLE, VERSIONS = "openai_cancel_responses", "openai_cancel_schema"


@pytest.fixture
async def roles(postgres: Postgres) -> AsyncIterator[Roles]:
    async with two_roles(postgres.url) as roles:
        yield roles


async def refusal(url: str) -> str:
    """Return why a role cannot use the ledger."""
    with pytest.raises(LedgerError) as caught:
        async with Ledger(url):
            pass
    assert caught.value.__context__ is None  # it refers to the connection, which has the password
    return str(caught.value)


async def test_a_role_that_owns_nothing_can_guard_and_sweep_and_purge(roles: Roles, server: Emulator, create) -> None:
    async with Ledger(roles.owner) as ledger:
        await ledger.grant(SERVICE)
    running, done = create(), create()
    async with Ledger(roles.service) as ledger, open_session(server, ledger, ledger_required=True) as session:
        async with session.guard(done):
            pass
        await ledger.track(running, session=session, ttl=0.001)
        assert await sweep(ledger, session) == {running: "cancelled"}
        assert await states(ledger) == {running: "cancelled", done: "released"}
        assert await ledger.purge(older_than=0.000001) == 2
    with pytest.raises(Exception, match="must be owner of"):
        await execute(roles.service, f"DROP TABLE {TABLE}")


async def test_without_tables_a_role_that_may_create_none_is_told_what_to_do(roles: Roles) -> None:
    assert await refusal(roles.service) == (
        f"The ledger's database refuses the role {quoted(SERVICE)}, which may not create the tables: "
        "run `openai-cancel ledger init` as the role that is to own them, or "
        f'GRANT CREATE ON SCHEMA "public" TO {quoted(SERVICE)};'
    )


async def test_a_role_without_a_schema_is_told_so(roles: Roles) -> None:
    words = await refusal(f"{roles.service}&options=-csearch_path%3Dnowhere")
    assert words.endswith(f"may use no schema of its search_path: GRANT USAGE ON SCHEMA … TO {quoted(SERVICE)};")


async def test_a_role_without_any_right_is_told_all_grants(roles: Roles) -> None:
    async with Ledger(roles.owner):
        pass
    assert await refusal(roles.service) == (
        f"The ledger's database refuses the role {quoted(SERVICE)}, which lacks rights: "
        f"GRANT SELECT, INSERT, UPDATE, DELETE ON {TABLE} TO {quoted(SERVICE)}; "
        f"GRANT SELECT ON {VERSIONS} TO {quoted(SERVICE)};"
    )


@pytest.mark.parametrize("right", ["INSERT", "UPDATE", "DELETE", "SELECT"])
async def test_a_missing_right_is_named_by_its_grant(roles: Roles, server: Emulator, right: str) -> None:
    async with Ledger(roles.owner) as ledger:
        await ledger.grant(SERVICE)
    await execute(roles.owner, f"REVOKE {right} ON {TABLE} FROM {quoted(SERVICE)}")
    session = AsyncSession(api_key=KEY, base_url=server.base_url, account="tests")
    async with Ledger(roles.service) as ledger:
        with pytest.raises(LedgerError) as caught:
            if right == "DELETE":
                await ledger.purge(older_than=1)
            elif right == "UPDATE":
                await ledger.release("resp_1", session=session)
            elif right == "SELECT":
                assert await ledger.stats()
            else:
                await ledger.track("resp_1", session=session, ttl=60)
    assert str(caught.value).endswith(f"lacks rights: GRANT {right} ON {TABLE} TO {quoted(SERVICE)};")


async def test_a_role_that_may_not_grant_is_told_who_may(roles: Roles) -> None:
    async with Ledger(roles.owner) as ledger:
        await ledger.grant(SERVICE)
        await ledger.grant("public")
    await execute(roles.owner, f"REVOKE DELETE ON {TABLE} FROM PUBLIC")
    async with Ledger(roles.service) as ledger:
        await ledger.grant(SERVICE)  # it has the rights already
        with pytest.raises(LedgerError) as caught:
            await ledger.grant("pg_monitor")
    assert str(caught.value) == (
        'The role "pg_monitor" still lacks rights, because this role may not grant them: run '
        "`openai-cancel ledger init --grant` as the role that owns the tables."
    )


async def test_tables_of_an_older_version_are_for_their_owner(roles: Roles) -> None:
    async with Ledger(roles.owner) as ledger:
        await ledger.grant(SERVICE)
    await execute(roles.owner, f"GRANT ALL ON {VERSIONS} TO {quoted(SERVICE)}")
    await execute(roles.owner, f"UPDATE {VERSIONS} SET version = 1")
    words = "bring the tables to the newest version: run `openai-cancel ledger init` as the role that owns them."
    assert (await refusal(roles.service)).endswith(words)


async def test_another_failure_has_its_own_words(roles: Roles) -> None:
    async with Ledger(roles.owner) as ledger:
        with pytest.raises(LedgerError, match='role "nobody:x" does not exist'):
            await ledger.grant("nobody:x")
        await ledger.grant(OWNER)


async def test_a_connection_that_ends_meanwhile_hides_no_error(roles: Roles, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("openai_cancel.ledger.grants._ASK", None)
    assert "permission denied for schema public" in await refusal(roles.service)


@pytest.mark.parametrize("kind", ["async", "blocking"])
async def test_a_role_that_cannot_be_is_refused(kind: str, server: Emulator, postgres: Postgres, tmp_path) -> None:
    async with open_calls(kind, postgres.url, server) as calls:
        for wrong in ("", "a\0", 5):
            with pytest.raises(ConfigurationError, match="role must be the name of a role"):
                await calls.grant(wrong)
    async with open_calls(kind, f"sqlite:///{tmp_path}/ledger.db", server) as calls:
        with pytest.raises(ConfigurationError, match="Only PostgreSQL has roles"):
            await calls.grant("service")
