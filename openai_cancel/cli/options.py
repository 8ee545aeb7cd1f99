"""The options that commands share."""

import getpass
import os
import re
import warnings
from codecs import BOM_UTF16_BE, BOM_UTF16_LE
from collections.abc import AsyncGenerator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, cast

from cyclopts import CycloptsError, Group, Parameter, Token, convert
from cyclopts.validators import Number

from openai_cancel.cli.exit_status import UsageError
from openai_cancel.errors import ConfigurationError

if TYPE_CHECKING:
    from openai_cancel.ledger import Ledger
    from openai_cancel.models import Response
    from openai_cancel.session import AsyncSession


OPTIONS: Group = Group("Options", sort_key=1)
"""The group of the options that only one command has."""

FILES: Group = Group("Files", sort_key=3)
FILTERS: Group = Group("Responses that the server lists", sort_key=4)
LEDGER: Group = Group("Ledger", sort_key=5)
LIMITS: Group = Group("Limits", sort_key=6)
OUTPUT: Group = Group("Output", sort_key=8)
CONNECTION: Group = Group("Connection", sort_key=10)


_DURATION = "must be greater than 0: a number of seconds, or a duration such as 30s, 15m, 2h or 7d"


def _read_duration(_: object, tokens: Sequence[Token]) -> float:
    try:
        return float(tokens[0].value)
    except ValueError:
        with suppress(CycloptsError):
            return cast("timedelta", convert(timedelta, tokens)).total_seconds()
    raise ValueError(_DURATION)


def _show_duration(seconds: float | None) -> str | None:
    if seconds is None:
        return None
    for unit, size in (("d", 86400), ("h", 3600), ("m", 60)):
        if seconds >= size and seconds % size == 0:
            return f"{seconds / size:.0f}{unit}"
    return f"{seconds:g}s"


def _read_path(_: object, tokens: Sequence[Token]) -> Path:
    return Path(*_read_paths(_, tokens))


def _read_paths(_: object, tokens: Sequence[Token]) -> tuple[str, ...]:
    if not all(token.value for token in tokens):
        raise ValueError("the path of the file is empty, as if a variable was not set")
    return tuple(token.value for token in tokens)


def _read_positive(_: object, tokens: Sequence[Token]) -> float:
    seconds = _read_duration(_, tokens)
    if not seconds > 0:  # also if it is NaN
        raise ValueError(_DURATION)
    return seconds


Duration: Parameter = Parameter(converter=_read_duration, metavar="DURATION", show_default=_show_duration)
"""A duration: a number of seconds, or `30s`, `15m`, `2h`, `7d`."""

Flag: Parameter = Parameter(negative=(), show_default=False)
"""An option without a value, or one without a default to show."""

Ids = Annotated[str, Parameter(show_default=False)]
"""The ids of responses, as arguments: each of `*ids`. Options may stand between them."""

Seconds = Annotated[float, Duration, Parameter(converter=_read_positive)]
"""A duration of more than 0."""

Count = Annotated[int, Parameter(validator=Number(gte=1), metavar="N")]
"""A whole number of at least 1."""

Url = Annotated[str, Parameter(metavar="URL")]
"""The address of a server or a database."""

Name = Annotated[str, Parameter(metavar="NAME")]
"""A name that the server or the ledger knows."""

Pairs = Annotated[tuple[str, ...], Flag, Parameter(metavar="NAME=VALUE")]
"""An option that can be repeated, with a name and a value each."""

File = Annotated[Path, Parameter(converter=_read_path, metavar="FILE")]
"""The path of a file."""

Files = Annotated[
    tuple[str, ...],
    Flag,
    Parameter(alias="-f", converter=_read_paths, allow_leading_hyphen=True, metavar="FILE", group=FILES),
]
"""The option `--file`: the paths of files of ids, with - for standard input."""

State = Literal[
    "tracked",
    "stopping",
    "released",
    "cancelled",
    "already_finished",
    "not_background",
    "not_found",
    "forbidden",
    "still_running",
    "unknown",
]
"""A state of a response in a ledger."""

AsJson = Annotated[bool, Flag, Parameter("--json", group=OUTPUT)]
"""The option `--json`."""

Quiet = Annotated[bool, Flag, Parameter(alias="-q", group=OUTPUT)]
"""The option `--quiet`."""

JsonOrText = Annotated[bool | None, Parameter("--json", negative="--no-json", show_default=False, group=OUTPUT)]
"""The options `--json` and `--no-json`. None, the default, is JSON unless the output is a terminal."""


@Parameter(name="*", group=LIMITS)
@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class RunOptions:
    """The options of every command that handles many responses at once.

    Attributes:
        concurrency: The number of responses to handle at once. The rate adapts to the limit of the server.
        deadline: The time that each response may take.
        as_json: Print JSON lines, the default if the output is not a terminal. --no-json prints text and totals.
        quiet: Print only what goes wrong. With --json, leave out only the totals.
    """

    concurrency: Count = 64
    deadline: Seconds = 60.0
    as_json: JsonOrText = None
    quiet: Quiet = False


DEFAULT_RUN = RunOptions()


@Parameter(name="*", group=FILES)
@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class FileOptions:
    """The options for ids from files, and for the log of their outcomes.

    Attributes:
        file: Files of ids: one id per line, JSON, or CSV with a column id or response_id. - is standard input.
        log: Append a JSON line for each result to this file, with the other columns of its row, for `report`.
        resume: Skip the responses that have ended according to the log.
        rerun_failed: Read the ids that have not ended according to this log. Without --log, results are appended to it.
    """

    file: Files = ()
    log: File | None = None
    resume: Annotated[bool, Flag] = False
    rerun_failed: File | None = None

    @property
    def are_given(self) -> bool:
        """Whether ids come from a file."""
        return bool(self.file or self.rerun_failed)

    @property
    def has_log(self) -> bool:
        """Whether the run has a log."""
        return bool(self.log or self.rerun_failed)

    def check(self, ids: Sequence[str]) -> None:
        """Refuse a run without ids, and one that cannot be resumed.

        Raises:
            UsageError: the options cannot work with these arguments.
        """
        if self.rerun_failed is None:
            check_ids(ids, self.file)
        elif ids or self.file or self.resume:
            raise UsageError("--rerun-failed takes the ids from a log: leave out ids, --file and --resume.")
        self.check_log()

    def check_log(self) -> None:
        """Refuse a run that cannot be resumed.

        Raises:
            UsageError: there is no log.
        """
        if self.resume and self.log is None:
            raise UsageError("--resume requires the --log of the earlier run.")


DEFAULT_FILES = FileOptions()


@Parameter(name="*", group=FILTERS)
@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class FilterOptions:
    """The conditions for responses on the list of a server.

    Attributes:
        older_than: Only responses that were created this long ago or earlier, such as 30s, 15m, 2h or 7d.
        newer_than: Only responses that were created this long ago, or later.
        model: Only responses of this model.
        metadata: Only responses with this metadata, as NAME=VALUE. Can be repeated: they have all of it.
        status: Only responses with this status, in place of queued and in_progress. Can be repeated.
        limit: The maximum number of responses.
    """

    older_than: Seconds | None = None
    newer_than: Seconds | None = None
    model: Name | None = None
    metadata: Pairs = ()
    status: Annotated[tuple[str, ...], Flag, Parameter(metavar="STATUS")] = ()
    limit: Count | None = None

    @property
    def conditions(self) -> list[str]:
        """The names of the options that restrict the responses to some."""
        values = {
            "--older-than": self.older_than,
            "--newer-than": self.newer_than,
            "--model": self.model,
            "--metadata": self.metadata,
        }
        return [name for name, value in values.items() if value]

    @property
    def given(self) -> list[str]:
        """The names of all options that are given."""
        return self.conditions + ["--status"] * bool(self.status) + ["--limit"] * bool(self.limit)

    def check(self) -> None:
        """Refuse options that cannot work.

        Raises:
            UsageError: they cannot be combined, or metadata are not of the form NAME=VALUE.
        """
        for pair in self.metadata:
            if "=" not in pair:
                raise UsageError(f"{pair!r} is not metadata: write --metadata NAME=VALUE.")
        if self.older_than is not None and self.newer_than is not None and self.older_than >= self.newer_than:
            raise UsageError("--older-than must be less than --newer-than: otherwise no response can match both.")

    def restarted(self) -> "FilterOptions":
        """Return the conditions for responses that run again: their status has changed, and others may be newer."""
        return replace(self, status=(), newer_than=None, limit=None)

    def select(self, session: "AsyncSession") -> "AsyncGenerator[Response, None]":
        """Start an iteration over the responses."""
        return session.running(**self.keywords())

    def keywords(self) -> dict[str, Any]:
        """Return the keyword arguments of `AsyncSession.running` and `Ledger.reconcile` that are given."""
        given = {
            "statuses": self.status,
            "older_than": self.older_than,
            "newer_than": self.newer_than,
            "model": self.model,
            "metadata": {name: value for name, _, value in (pair.partition("=") for pair in self.metadata)},
            "limit": self.limit,
        }
        return {name: value for name, value in given.items() if value}


DEFAULT_FILTERS = FilterOptions()


@Parameter(name="*", group=FILTERS)
@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class RunningOptions:
    """The options to stop what a server lists.

    Attributes:
        running: Stop the responses that the server lists as running, instead of ids. It asks first.
        everything: Stop all of them, whoever created them.
        yes: Do not ask.
    """

    running: Annotated[bool, Flag] = False
    everything: Annotated[bool, Flag, Parameter("--all")] = False
    yes: Annotated[bool, Flag] = False

    def check(self, filters: FilterOptions, ids: Sequence[str], files: FileOptions) -> None:
        """Refuse options that cannot be combined.

        Raises:
            UsageError: they cannot.
        """
        if not self.running:
            given = filters.given + ["--all"] * self.everything + ["--yes"] * self.yes
            if given:
                raise UsageError(f"{given[0]} requires --running.")
            return
        filters.check()
        files.check_log()
        if ids or files.are_given:
            raise UsageError("--running finds the ids itself: leave out ids and --file, or --rerun-failed.")
        if not filters.conditions and not self.everything:
            raise UsageError("--running requires a condition, such as --older-than 1h, or --all for everybody's.")
        if filters.conditions and self.everything:
            raise UsageError(f"--all cannot be combined with {filters.conditions[0]}.")


DEFAULT_RUNNING = RunningOptions()


@Parameter(name="*", group=CONNECTION)
@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class ConnectionOptions:
    """The options of every command that connects to a server.

    Attributes:
        base_url: The URL of the API. Defaults to OPENAI_BASE_URL, or the URL of OpenAI's API.
        azure: The endpoint of Azure OpenAI, such as https://NAME.openai.azure.com. Its key is AZURE_OPENAI_API_KEY.
        api_version: The version of Azure's API. Defaults to OPENAI_API_VERSION, or the v1 API.
        organization: The organization to use. Defaults to OPENAI_ORG_ID.
        project: The project to use. Defaults to OPENAI_PROJECT_ID.
        key_file: A file that contains only the API key. By default, the key is in OPENAI_API_KEY.
        ask_key: Ask for the API key on the terminal, without showing it.
        api_key: Refused, because other users can see the arguments of a process.
    """

    base_url: Url | None = None
    azure: Url | None = None
    api_version: Annotated[str | None, Parameter(metavar="VERSION")] = None
    organization: Name | None = None
    project: Name | None = None
    key_file: File | None = None
    ask_key: Annotated[bool, Flag] = False
    api_key: Annotated[str | None, Parameter(show=False)] = None

    def session(self, *, account: str | None = None, max_connections: int = 1) -> "AsyncSession":
        """Make a session with these settings. It is not open yet.

        Args:
            account: the name of the account in a ledger.
            max_connections: the number of requests that may be in progress at once.

        Raises:
            ConfigurationError: a setting is missing or cannot work. The message names the option or the variable.
        """
        from openai_cancel.session import AsyncSession  # brings aiohttp, which takes long to import

        self._check_combination()
        self._check_values()
        key = self._read_key()
        if self.azure is not None:
            return AsyncSession.azure(
                self.azure,
                api_key=key,
                api_version=self.api_version,
                account=account,
                max_connections=max_connections,
            )
        return AsyncSession(
            api_key=key,
            base_url=self.base_url,
            organization=self.organization,
            project=self.project,
            account=account,
            max_connections=max_connections,
        )

    def _check_combination(self) -> None:
        if self.api_key is not None:
            raise ConfigurationError(
                "A key on the command line is visible in the list of processes: use OPENAI_API_KEY, --key-file or "
                "--ask-key, and replace this key."
            )
        if self.azure is None and self.api_version is not None:
            raise ConfigurationError("--api-version requires --azure.")
        if self.azure is not None and (self.base_url or self.organization or self.project):
            raise ConfigurationError("--azure cannot be combined with --base-url, --organization or --project.")
        variable = "OPENAI_API_KEY" if self.azure is None else "AZURE_OPENAI_API_KEY"
        has_key = self.key_file or self.ask_key or os.environ.get(variable) or _custom_headers_have_credentials()
        if not has_key:
            azure = "For Azure OpenAI, add --azure URL. " if os.environ.get("AZURE_OPENAI_API_KEY") else ""
            raise ConfigurationError(
                f"No API key: set {variable}, or use --key-file or --ask-key. {azure}If the server needs no key, any "
                "value will do. To try the command without a key, run: openai-cancel demo"
            )

    def _check_values(self) -> None:
        if self.azure is not None:
            _check_address(self.azure, "--azure", "https://NAME.openai.azure.com")
            check_text(*_given(self.api_version, "--api-version", "OPENAI_API_VERSION"))
            return
        url, source = _given(self.base_url, "--base-url", "OPENAI_BASE_URL")
        if url is not None:
            _check_address(url, source, "https://api.openai.com/v1")
        check_text(self.organization, "--organization")
        check_text(self.project, "--project")

    def _read_key(self) -> str | None:
        """Return the key of --key-file or --ask-key, or None if it is in the environment."""
        from openai_cancel.checks import check_key  # brings yarl, which help does without

        if self.key_file is not None:
            return check_key(_read_key_file(self.key_file), f"The key in {self.key_file}")
        return check_key(_ask_for_key(), "The key from --ask-key") if self.ask_key else None


DEFAULT_CONNECTION = ConnectionOptions()


@Parameter(name="*", group=LEDGER)
@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class LedgerOptions:
    """The options of every command that uses a ledger.

    Attributes:
        ledger: The database: sqlite:///ledger.db or postgresql://user@host/db. Defaults to OPENAI_CANCEL_LEDGER.
    """

    ledger: Url | None = None

    def make(self, *, lease: float = 60.0) -> "Ledger":
        """Make the ledger. It is not open yet.

        Args:
            lease: seconds that a lease lasts.

        Raises:
            ConfigurationError: the URL is missing or cannot work, or the extra `ledger` is not installed.
        """
        url, source = _given(self.ledger or None, "--ledger", "OPENAI_CANCEL_LEDGER")
        if url is None:
            raise ConfigurationError("No ledger: set OPENAI_CANCEL_LEDGER, or use --ledger.")
        try:
            from openai_cancel.ledger import Ledger  # SQLAlchemy takes long to import, and is an extra
        except ModuleNotFoundError as error:
            raise ConfigurationError(f"{error}") from None
        try:
            return Ledger(url, lease=lease)
        except ConfigurationError as error:
            raise ConfigurationError(f"{source}: {error}") from None


DEFAULT_LEDGER = LedgerOptions()


@Parameter(name="*", group=LEDGER)
@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class AccountOptions:
    """The option of every command for the responses of one account in a ledger.

    Attributes:
        account: The name of the account in the ledger. Defaults to a fingerprint of the key, organization and project.
    """

    account: Name | None = None

    def session(self, connection: ConnectionOptions, *, max_connections: int = 1) -> "AsyncSession":
        """Make a session of this account. It is not open yet.

        Args:
            connection: the settings of the session.
            max_connections: the number of requests that may be in progress at once.

        Raises:
            ConfigurationError: a setting is missing or cannot work.
        """
        if self.account == "":
            raise ConfigurationError("--account must not be empty.")
        check_text(self.account, "--account")
        return connection.session(account=self.account, max_connections=max_connections)


DEFAULT_ACCOUNT = AccountOptions()


@Parameter(name="*", group=LEDGER)
@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class SelectionOptions:
    """The options of every command for some of the responses in a ledger.

    Attributes:
        label: Only responses with this label, as NAME=VALUE. Can be repeated: they have all of the labels.
        state: Only responses in this state. Those that are tracked or stopping are open; all others have ended.
    """

    label: Pairs = ()
    state: Annotated[State | None, Parameter(metavar="STATE")] = None

    @property
    def labels(self) -> dict[str, str]:
        """The labels.

        Raises:
            UsageError: one is not of the form NAME=VALUE.
        """
        return read_labels(self.label)


DEFAULT_SELECTION = SelectionOptions()


def read_labels(pairs: Sequence[str]) -> dict[str, str]:
    """Return the labels of --label options.

    Raises:
        UsageError: one is not of the form NAME=VALUE.
        ConfigurationError: one contains control characters.
    """
    for pair in pairs:
        if "=" not in pair:
            raise UsageError(f"{pair!r} is not a label: write --label NAME=VALUE.")
        check_text(pair, "--label")
    return {name: value for name, _, value in (pair.partition("=") for pair in pairs)}


def check_ids(ids: Sequence[str], files: Sequence[str]) -> None:
    """Refuse a run without ids.

    Raises:
        UsageError: there are none, or one is the path of a file.
    """
    if not ids and not files:
        raise UsageError("No ids: pass ids, or use --file, or - for standard input.")
    refuse_file(ids, "--file", " For a response with this id, use standard input.")


def refuse_file(ids: Sequence[str], option: str, otherwise: str = "") -> None:
    """Refuse the path of a file among ids: the user means the ids in it.

    Raises:
        UsageError: there is one.
    """
    for name in ids:
        if os.path.isfile(name):  # noqa: PTH113 - unlike Path, it takes any text
            raise UsageError(f"{name} is a file: for the ids in it, use {option} {name}.{otherwise}")


def check_text(text: str | None, source: str) -> None:
    """Refuse a text that contains control characters.

    Raises:
        ConfigurationError: it does. The message names the source.
    """
    from openai_cancel.checks import CONTROL  # brings yarl, which help does without

    if text is not None and CONTROL.search(text):
        raise ConfigurationError(f"{source} must not contain line breaks or other control characters.")


def _given(value: str | None, option: str, variable: str) -> tuple[str | None, str]:
    """Return the value of an option or, by default, of an environment variable; and the name of that one."""
    return (value, option) if value is not None else (os.environ.get(variable) or None, variable)


def _check_address(address: str, source: str, example: str) -> None:
    from openai_cancel.checks import check_base_url  # brings yarl, which help does without

    check_base_url(address, source, example, credentials="use --key-file or --ask-key")


def _custom_headers_have_credentials() -> bool:
    lines = os.environ.get("OPENAI_CUSTOM_HEADERS", "").splitlines()
    return any(line.partition(":")[0].strip().lower() in {"authorization", "api-key"} for line in lines)


def _read_key_file(path: Path) -> str:
    try:
        text = path.read_bytes()
        # Windows PowerShell writes UTF-16 or a byte order mark.
        key = text.decode("utf-16" if text.startswith((BOM_UTF16_LE, BOM_UTF16_BE)) else "utf-8-sig").strip()
    except OSError as error:
        raise ConfigurationError(f"Cannot read the key: {path}: {error.strerror}.") from error
    except UnicodeDecodeError:
        raise ConfigurationError(f"Cannot read the key: {path} is not text.") from None
    if not key:
        raise ConfigurationError(f"Cannot read the key: {path} is empty.")
    if re.match(r"(?:export\s+)?\w*KEY\s*=", key):
        raise ConfigurationError(f"Cannot read the key: {path} sets a variable: leave only the key in the file.")
    return key


def _ask_for_key() -> str:
    with warnings.catch_warnings():
        warnings.simplefilter("error", getpass.GetPassWarning)  # it would show the key
        try:
            return getpass.getpass("API key: ").strip()
        except (getpass.GetPassWarning, EOFError):
            raise ConfigurationError("--ask-key requires a terminal: use OPENAI_API_KEY or --key-file.") from None
