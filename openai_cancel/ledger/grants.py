"""Grant a role of PostgreSQL the rights that it needs, and say which of them it lacks."""

from collections.abc import Collection
from typing import Any

from sqlalchemy import Connection, text
from sqlalchemy.exc import DBAPIError

from openai_cancel.errors import ConfigurationError, LedgerError
from openai_cancel.ledger.table import RESPONSES, VERSIONS, Command

_RIGHTS = {RESPONSES.name: ("SELECT", "INSERT", "UPDATE", "DELETE"), VERSIONS.name: ("SELECT",)}
"""The rights that a service needs. DELETE is for `purge` alone."""

_DENIED = frozenset({"42501", "3F000"})
"""The SQLSTATEs for missing rights, and for a search_path without a schema that the role may use.

See https://www.postgresql.org/docs/current/errcodes-appendix.html.
"""

_NEEDED = ", ".join(f"('{kind}', '{name}')" for name, kinds in _RIGHTS.items() for kind in kinds)

_ASK = text(f"""
SELECT current_user AS role, current_schema() AS schema, to_regclass('{RESPONSES.name}') IS NOT NULL AS has_tables,
    (SELECT array_agg(name || ' ' || kind) FROM (VALUES {_NEEDED}) AS needed (kind, name)
        WHERE NOT has_table_privilege(to_regclass(name), kind)) AS missing
""")  # noqa: S608 - names of this package

_ASK_FOR_ROLE = text(f"""
SELECT name, kind FROM (VALUES {_NEEDED}) AS needed (kind, name)
    WHERE NOT has_table_privilege(:role, to_regclass(name), kind)
""")  # noqa: S608 - names of this package


def grant(dialect: str, role: str) -> list[Command]:
    """Return the commands that let a role use the tables. The last one reads which rights it still lacks.

    Raises:
        ConfigurationError: there are no roles, or the name cannot be that of a role.
    """
    if dialect != "postgresql":
        raise ConfigurationError("Only PostgreSQL has roles: who may use a file of SQLite depends on its permissions.")
    if not isinstance(role, str) or not role or "\0" in role:
        raise ConfigurationError(f"role must be the name of a role, not {role!r}.")
    # A colon would begin a parameter.
    statements = [statement.replace(":", "\\:") for statement in _statements(role, _RIGHTS)]
    return [*(Command(text(statement)) for statement in statements), Command(_ASK_FOR_ROLE, [{"role": role}])]


def check_granted(missing: Collection[object], role: str) -> None:
    """Make sure that a role lacks no right: if the role of this process may not grant one, PostgreSQL only warns.

    Args:
        missing: the rows of the last command of `grant`.
        role: the name of the role.

    Raises:
        LedgerError: it lacks a right.
    """
    if missing:
        raise LedgerError(
            f"The role {_quoted(role)} still lacks rights, because this role may not grant them: run "
            "`openai-cancel ledger init --grant` as the role that owns the tables."
        )


def explain(error: Exception, connection: Connection) -> LedgerError | None:
    """Return an error that says which rights a role lacks, and what to do; or None for another problem.

    Args:
        error: the error of a statement.
        connection: the connection, whose transaction has been rolled back.
    """
    if not isinstance(error, DBAPIError) or getattr(error.orig, "sqlstate", None) not in _DENIED:
        return None
    with connection.begin():
        row = connection.execute(_ASK).one()
    return LedgerError(f"The ledger's database refuses {_describe(row)}")


def _describe(row: Any) -> str:
    role = _quoted(row.role)
    as_owner = "run `openai-cancel ledger init` as the role that is to own them"
    if row.schema is None:
        return f"the role {role}, which may use no schema of its search_path: GRANT USAGE ON SCHEMA … TO {role};"
    if not row.has_tables:
        create = f"GRANT CREATE ON SCHEMA {_quoted(row.schema)} TO {role};"
        return f"the role {role}, which may not create the tables: {as_owner}, or {create}"
    if row.missing:
        lacks: dict[str, tuple[str, ...]] = {}
        for name, kind in (right.split() for right in row.missing):
            lacks[name] = (*lacks.get(name, ()), kind)
        return f"the role {role}, which lacks rights: {' '.join(_statements(row.role, lacks))}"
    as_owner = as_owner.replace("is to own them", "owns them")
    return f"the role {role}, which may not bring the tables to the newest version: {as_owner}."


def _statements(role: str, rights: dict[str, tuple[str, ...]]) -> list[str]:
    return [f"GRANT {', '.join(kinds)} ON {name} TO {_quoted(role)};" for name, kinds in rights.items()]


def _quoted(name: str) -> str:
    """Return an identifier as it is written in SQL."""
    return '"' + name.replace('"', '""') + '"'
