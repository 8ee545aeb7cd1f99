"""`PostgreSQL`: how a ledger connects to PostgreSQL. URLs, service files and variables mean what they mean to libpq.

See https://www.postgresql.org/docs/current/libpq-connect.html.
"""

import math
import os
import socket
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from typing import Any
from urllib.parse import quote

import attrs
from sqlalchemy import Connection, Engine, create_engine
from sqlalchemy.pool import NullPool

from openai_cancel.errors import ConfigurationError, LedgerError
from openai_cancel.ledger.grants import explain
from openai_cancel.secret_values import Secret, SecretMapping

_LIKE = "write it like postgresql://user@host/database"

_COUNTS = ("port", "connect_timeout", "keepalives_idle", "keepalives_interval", "keepalives_count", "tcp_user_timeout")
"""The options that are numbers. libpq looks at them only when it connects."""

_KEEPALIVES = {"keepalives_idle": "30", "keepalives_interval": "10", "keepalives_count": "3"}
"""More often than the two hours of most systems, so that what forgets idle connections does not forget this one."""

_NOWHERE = "/openai-cancel-checks-options"
"""A folder without a socket. To connect to it fails at once, and after libpq has checked the options."""

_NO_MODE = "none"
"""A value of `sslmode` that libpq refuses before it uses the network."""

_MAX_MILLISECONDS = 2**31 - 1


@attrs.frozen
class PostgreSQL:
    """A database of PostgreSQL, which psycopg connects to.

    Attributes:
        shown: the URL without a password.
        dialect: the name of the dialect.
        is_remote: see `openai_cancel.ledger.connection.Backend`.
    """

    shown: str
    _parameters: Mapping[str, Any] = attrs.field(repr=False)
    _unlimited: frozenset[str] = attrs.field(repr=False)  # limits of time that the operator leaves to the ledger
    dialect: str = attrs.field(default="postgresql", init=False)
    is_remote: bool = attrs.field(default=True, init=False)

    def create_engine(self, timeout: float) -> Engine:
        """Return an engine whose connections have no state: they work behind a pooler that shares them.

        There are no named prepared statements, and every setting ends with its transaction.

        Args:
            timeout: seconds that the ledger waits for a transaction.
        """
        return create_engine(
            "postgresql+psycopg://",
            creator=partial(_connect, self._parameters, self._unlimited, timeout),
            poolclass=NullPool,
            hide_parameters=True,
            use_native_hstore=False,
        )

    def set_up(self, connection: Connection, is_over: Callable[[], bool]) -> None:
        """Do nothing: every setting belongs to a transaction."""

    def begin(
        self,
        connection: Connection,
        is_over: Callable[[], bool],
        *,
        reads_only: bool,
        timeout: float,
        lock_timeout: float,
    ) -> None:
        """Begin a transaction, in one round trip.

        The server ends it, and frees its locks, if this process dies or gives up.

        Args:
            connection: the connection.
            is_over: not used.
            reads_only: not used. A replica is no place for a ledger's readers, who want to see what was written.
            timeout: seconds that a statement may take.
            lock_timeout: seconds that it may wait for a lock.
        """
        del is_over, reads_only
        statements = ["BEGIN ISOLATION LEVEL READ COMMITTED"]
        if timeout < math.inf:
            limits = {
                "statement_timeout": timeout,
                "idle_in_transaction_session_timeout": timeout,
                "lock_timeout": lock_timeout,
            }
            statements += [f"SET LOCAL {name} = {_milliseconds(limit)}" for name, limit in limits.items()]
        connection.exec_driver_sql("; ".join(statements), execution_options={"no_parameters": True})

    def handle(self, driver: Any) -> "SocketHandle":
        """Return what ends the calls of a driver's connection from another thread."""
        return SocketHandle(driver.fileno())

    def opened_file(self, connection: Connection) -> None:
        """Return None: a server has no file that others could replace."""

    def explain(self, error: Exception, connection: Connection) -> LedgerError | None:
        """Return an error that says which rights a role lacks, if that is the problem."""
        return explain(error, connection)


class SocketHandle:
    """The socket of a connection, to be shut down by another thread than the one that uses the connection.

    Args:
        number: the number of the socket. This object has one of its own, which libpq cannot close and reuse.
    """

    def __init__(self, number: int) -> None:
        self._socket = socket.fromfd(number, socket.AF_INET, socket.SOCK_STREAM)  # the family does not matter here

    def interrupt(self) -> None:
        """Make the call that waits for the server fail."""
        with suppress(OSError):  # the connection has ended
            self._socket.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Free the socket."""
        self._socket.close()


def read_postgresql_url(url: str) -> PostgreSQL:
    """Return the database of a URL.

    Args:
        url: the URL, with the scheme `postgresql://`.

    Raises:
        ConfigurationError: the URL cannot be honoured. The error does not quote it.
    """
    given = _parse(url)
    if given is None:
        raise ConfigurationError(f"That is not the URL of a PostgreSQL database: {_LIKE}.{_unknown_option(url)}")
    _check_numbers(given)
    places = _places(given)
    effective = _check_with_libpq(given)
    _check_suitability(effective)
    parameters = SecretMapping({**_defaults(given, effective), **places, **given})
    unlimited = frozenset({"connect_timeout", "tcp_user_timeout"} - effective.keys())
    return PostgreSQL(_describe(given), parameters, unlimited)


def _parse(url: str) -> SecretMapping | None:
    """Return the options in a URL, or None if libpq does not understand it."""
    # psycopg takes a moment to import, and a ledger in SQLite does not need it.
    from psycopg import ProgrammingError
    from psycopg.conninfo import conninfo_to_dict

    try:
        return SecretMapping(conninfo_to_dict(url))
    except (ProgrammingError, UnicodeError, ValueError):  # which quote the URL
        return None


def _unknown_option(url: str) -> str:
    """Return a sentence about an option that libpq does not know, or an empty string."""
    from psycopg.pq import Conninfo

    query = Secret(url.partition("?")[2])
    if "@" in query:  # that would be a password with a question mark
        return ""
    known = {option.keyword.decode() for option in Conninfo.get_defaults()}
    names = [pair.partition("=")[0] for pair in query.split("&")]
    unknown = [name for name in names if name.isidentifier() and name not in known]
    advice = " Use sslmode=…." if "ssl" in names else ""
    return f" libpq, the library of PostgreSQL, has no option {unknown[0]!r}.{advice}" if unknown else advice


def _check_numbers(given: Mapping[str, Any]) -> None:
    for name in _COUNTS:
        for part in str.split(given.get(name, ""), ","):
            if part and not (part.isascii() and part.isdecimal()):
                raise ConfigurationError(f"{name} in the URL of a ledger must be a number.")


def _places(given: Mapping[str, Any]) -> Mapping[str, str]:
    """Return the hosts and ports that libpq would use, also those of a service file and of the environment.

    psycopg tries one after another those that it is told, and it does not read service files.

    Raises:
        ConfigurationError: there is not a port for each host.
    """
    _, options = _start(SecretMapping({**given, "sslmode": _NO_MODE}))
    places = {name: options[name] for name in ("host", "hostaddr", "port") if name in options}
    hosts, ports = _count_hosts(places), len(str.split(places.get("port", ""), ","))
    if ports not in {1, hosts}:
        raise ConfigurationError(f"The URL of a ledger, or what it refers to, names {ports} ports for {hosts} hosts.")
    return SecretMapping(places)


def _count_hosts(places: Mapping[str, Any]) -> int:
    return max(len(str.split(places.get(name, ""), ",")) for name in ("host", "hostaddr"))


def _check_with_libpq(given: Mapping[str, Any]) -> Mapping[str, str]:
    """Let libpq check the options, and return them with those of the service file and of the environment.

    Raises:
        ConfigurationError: libpq refuses an option.
    """
    words, options = _start(SecretMapping({**given, "host": _NOWHERE, "hostaddr": "", "port": "5432"}))
    # A socket in a folder cannot be encrypted with GSSAPI, which says nothing about the host.
    if _NOWHERE not in words and "local socket" not in words:
        raise ConfigurationError(f"An option in the URL of a ledger cannot be used: {words}.")
    return options


def _start(options: Mapping[str, Any]) -> tuple[str, Mapping[str, str]]:
    """Let libpq begin a connection that cannot be made, and return its complaint and all options as it sees them."""
    from psycopg.conninfo import make_conninfo
    from psycopg.pq import PGconn

    connection = PGconn.connect_start(Secret(make_conninfo(**options)).encode())
    try:
        words = " ".join(connection.error_message.decode(errors="replace").split())
        found = {
            option.keyword.decode(): option.val.decode(errors="replace") for option in connection.info if option.val
        }
    finally:
        connection.finish()
    return words, SecretMapping(found)


def _check_suitability(options: Mapping[str, str]) -> None:
    if options.get("target_session_attrs") in {"read-only", "standby", "prefer-standby"}:
        raise ConfigurationError("A ledger writes: target_session_attrs must be read-write, primary or any.")
    if options.get("replication"):
        raise ConfigurationError("A ledger needs an ordinary connection: remove `replication` from its URL.")
    if options.get("client_encoding", "utf8").lower().replace("-", "") not in {"utf8", "auto"}:
        raise ConfigurationError("A ledger's text is Unicode: remove client_encoding from its URL.")


def _defaults(given: Mapping[str, Any], effective: Mapping[str, str]) -> dict[str, Any]:
    """Return options for what neither the URL nor a service file nor the environment says."""
    chosen = {
        "client_encoding": "utf8",
        "fallback_application_name": "openai-cancel",
        **_KEEPALIVES,
    }
    options: dict[str, Any] = {name: value for name, value in chosen.items() if name not in effective}
    # Of several hosts, or of the addresses of a host, only the one that can be written to will do.
    explicit = "target_session_attrs" in given or "PGTARGETSESSIONATTRS" in os.environ
    if effective.get("target_session_attrs") == "any" and not explicit:
        options["target_session_attrs"] = "read-write"
    return options


def _describe(given: Mapping[str, Any]) -> str:
    """Return a URL without a password and most options."""
    user = quote(given.get("user", ""), safe="") + (":***" if "password" in given else "")
    hosts = str.split(given.get("host", ""), ",")
    ports = str.split(given.get("port", ""), ",")
    count = max(len(hosts), len(ports))  # of which the URL may name only the ports, or one port
    hosts, ports = (names * (count // len(names)) for names in (hosts, ports))
    hosts = [f"[{host}]" if ":" in host else quote(host, safe="") for host in hosts]
    places = [host + (f":{port}" if port else "") for host, port in zip(hosts, ports, strict=False)]
    service = f"?service={given['service']}" if "service" in given else ""
    return f"postgresql://{user}{'@' if user else ''}{','.join(places)}/{given.get('dbname', '')}{service}"


def _connect(parameters: Mapping[str, Any], unlimited: frozenset[str], timeout: float) -> Any:
    """Connect within the time of a transaction, so that the last of several hosts has its turn."""
    import psycopg  # see `_parse`

    limits: dict[str, Any] = {}
    if timeout < math.inf:
        share = timeout / _count_hosts(parameters)
        limits["connect_timeout"] = min(max(2, int(share)), _MAX_MILLISECONDS)  # two seconds are the least
        limits["tcp_user_timeout"] = _milliseconds(timeout)
    chosen = {name: limits[name] for name in unlimited & limits.keys()}
    return psycopg.connect(**{**parameters, **chosen}, autocommit=True, prepare_threshold=None)


def _milliseconds(seconds: float) -> int:
    return max(1, min(math.ceil(seconds * 1000), _MAX_MILLISECONDS))
