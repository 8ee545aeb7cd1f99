"""Where the API is, and the key to it, as the command line says them."""

import getpass
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from cyclopts import Group, Parameter

from openai_cancel.errors import ConfigurationError
from openai_cancel.session import AsyncSession

_GROUP = Group("Connection", sort_key=10)


@Parameter(name="*", group=_GROUP)
@dataclass(frozen=True, kw_only=True)
class Connection:
    """Options of every command that talks to a server.

    Attributes:
        base_url: Where the API is; else OPENAI_BASE_URL, or OpenAI's.
        azure: An Azure OpenAI endpoint, such as https://NAME.openai.azure.com; the key is AZURE_OPENAI_API_KEY.
        api_version: Of Azure's API; else OPENAI_API_VERSION, or the v1 API.
        organization: Else OPENAI_ORG_ID.
        project: Else OPENAI_PROJECT_ID.
        key_file: A file that holds the key and nothing else; else OPENAI_API_KEY.
        ask_key: Ask for the key on the terminal; it is not shown.
        api_key: Refused, since others could read it in the list of processes.
    """

    base_url: str | None = None
    azure: str | None = None
    api_version: str | None = None
    organization: str | None = None
    project: str | None = None
    key_file: Path | None = None
    ask_key: Annotated[bool, Parameter(negative=(), show_default=False)] = False
    api_key: Annotated[str | None, Parameter(show=False)] = None

    def session(self, *, account: str | None = None, at_once: int = 1) -> AsyncSession:
        """A session with these settings, not open yet.

        Args:
            account: what a ledger calls the account.
            at_once: how many requests may be under way.

        Raises:
            ConfigurationError: one of them cannot work.
        """
        key = self._key()
        if self.azure is None:
            if self.api_version is not None:
                raise ConfigurationError("--api-version is for --azure.")
            return AsyncSession(
                api_key=key,
                base_url=self.base_url,
                organization=self.organization,
                project=self.project,
                account=account,
                max_connections=at_once,
            )
        if self.base_url or self.organization or self.project:
            raise ConfigurationError("--azure goes without --base-url, --organization and --project.")
        return AsyncSession.azure(
            self.azure, api_key=key, api_version=self.api_version, account=account, max_connections=at_once
        )

    def _key(self) -> str | None:
        if self.api_key is not None:
            raise ConfigurationError(
                "A key on the command line can be read in the list of processes: use OPENAI_API_KEY, --key-file or "
                "--ask-key, and change this key."
            )
        if self.key_file is not None:
            return _read(self.key_file)
        return _ask() if self.ask_key else None


def _read(path: Path) -> str:
    try:
        key = path.read_text(encoding="utf-8").strip()
    except OSError as error:
        raise ConfigurationError(f"The key cannot be read: {path}: {error.strerror}.") from error
    except UnicodeDecodeError:
        raise ConfigurationError(f"The key cannot be read: {path} is no text.") from None
    if not key:
        raise ConfigurationError(f"The key cannot be read: {path} is empty.")
    return key


def _ask() -> str:
    with warnings.catch_warnings():
        warnings.simplefilter("error", getpass.GetPassWarning)  # it would show what is typed
        try:
            return getpass.getpass("API key: ")
        except (getpass.GetPassWarning, EOFError):
            raise ConfigurationError("--ask-key needs a terminal: use OPENAI_API_KEY or --key-file.") from None
