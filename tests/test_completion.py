"""Editors and notebooks offer every keyword of every public call.

Jedi completes in notebooks and in many editors, pyright in VS Code. The tests with pyright need the group `lint`.
"""

import inspect
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jedi
import pytest
from jedi.api.environment import InterpreterEnvironment
from processes import running_beside

from openai_cancel import AsyncSession, Session
from openai_cancel.emulator import Emulator, Fault, Script
from openai_cancel.ledger import BlockingLedger, Ledger

pytestmark = pytest.mark.slow

PREAMBLE = """
from openai_cancel import AsyncSession, Session
from openai_cancel.emulator import Emulator, Fault, Script
from openai_cancel.ledger import Ledger
asynchronous = AsyncSession()
blocking = Session()
ledger = Ledger("sqlite:///ledger.db")
emulator = Emulator()
"""

CALLS: dict[str, Callable[..., Any]] = {
    "AsyncSession": AsyncSession,
    "AsyncSession.azure": AsyncSession.azure,
    "AsyncSession.from_openai": AsyncSession.from_openai,
    "Session": Session,
    "Session.azure": Session.azure,
    "Session.from_openai": Session.from_openai,
    "Ledger": Ledger,
    "Emulator": Emulator,
    "Script": Script,
    "Fault": Fault,
    **{
        f"{name}.{call}": getattr(cls, call)
        for name, cls in {"asynchronous": AsyncSession, "blocking": Session}.items()
        for call in ("cancel", "retrieve", "stop", "guard", "watch", "wait", "wait_many", "stop_many", "running")
    },
    **{
        f"{name}.{call}": getattr(cls, call)
        for name, cls in {"ledger": Ledger, "blocking.ledger": BlockingLedger}.items()
        for call in ("track", "track_many", "release", "entries", "purge", "sweep", "stop")
    },
    "emulator.add": Emulator.add,
}


def keywords(call: Callable[..., Any]) -> set[str]:
    """The names of the arguments that can be passed by keyword."""
    by_keyword = {inspect.Parameter.KEYWORD_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD}
    parameters = inspect.signature(call).parameters.values()
    return {parameter.name for parameter in parameters if parameter.kind in by_keyword} - {"self"}


def test_every_public_call_of_a_session_is_asked_for() -> None:
    for name, cls in {"asynchronous": AsyncSession, "blocking": Session}.items():
        public = {call for call, value in vars(cls).items() if inspect.isfunction(value) and not call.startswith("_")}
        assert public - {"open", "close", "identify", "load_account"} == {
            call.split(".")[1] for call in CALLS if re.match(rf"{name}\.\w+$", call)
        }


@pytest.mark.parametrize("call", CALLS)
def test_jedi_offers_every_keyword(call: str) -> None:
    # Its own environment would be another process, for all tests.
    script = jedi.Script(f"{PREAMBLE}\n{call}(", environment=InterpreterEnvironment())
    completions = script.complete()
    assert keywords(CALLS[call]) <= {found.name.removesuffix("=") for found in completions}


class LanguageServer:
    """A language server that is spoken to over its standard input and output.

    See https://microsoft.github.io/language-server-protocol/.
    """

    def __init__(self, process: "subprocess.Popen[bytes]", root: Path) -> None:
        self._process = process
        self._last = 0
        self._configuration = {"pythonPath": sys.executable}
        folders = [{"uri": root.as_uri(), "name": root.name}]
        capabilities = {"workspace": {"configuration": True, "workspaceFolders": True}}
        self.ask("initialize", {"processId": None, "workspaceFolders": folders, "capabilities": capabilities})
        self.tell("initialized", {})

    def close(self) -> None:
        self.ask("shutdown", None)
        self.tell("exit", None)
        self._process.communicate(timeout=30)

    def tell(self, method: str, parameters: Any) -> None:
        self._write({"jsonrpc": "2.0", "method": method, "params": parameters})

    def ask(self, method: str, parameters: Any) -> Any:
        self._last += 1
        self._write({"jsonrpc": "2.0", "id": self._last, "method": method, "params": parameters})
        while (message := self._read()).get("id") != self._last or "method" in message:
            if "id" in message:  # a request of the server; the one for its configuration has items
                items = (message.get("params") or {}).get("items", [])
                self._write({"jsonrpc": "2.0", "id": message["id"], "result": [self._configuration for _ in items]})
        return message["result"]

    def _write(self, message: dict[str, Any]) -> None:
        body = json.dumps(message).encode()
        self._process.stdin.write(b"Content-Length: %d\r\n\r\n%s" % (len(body), body))
        self._process.stdin.flush()

    def _read(self) -> dict[str, Any]:
        length = 0
        while (line := self._process.stdout.readline().strip()) or not length:
            name, _, value = line.partition(b":")
            if name.lower() == b"content-length":
                length = int(value)
        return json.loads(self._process.stdout.read(length))


@pytest.fixture(scope="module")
def pyright(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], set[str]]]:
    """Complete what comes after a text, with pyright."""
    command = Path(sys.executable).with_name("pyright-langserver")
    if not command.exists() or shutil.which("node") is None:
        pytest.skip("needs pyright: pip install --group lint")
    root = tmp_path_factory.mktemp("completion")
    with running_beside([str(command), "--stdio"], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        yield from completing(LanguageServer(process, root), root)


def completing(server: LanguageServer, root: Path) -> Iterator[Callable[[str], set[str]]]:
    uri = (root / "notebook.py").as_uri()
    document = {"uri": uri, "languageId": "python", "version": 0, "text": ""}
    server.tell("textDocument/didOpen", {"textDocument": document})

    def complete(text: str) -> set[str]:
        document["version"] += 1
        changed = {"uri": uri, "version": document["version"]}
        server.tell("textDocument/didChange", {"textDocument": changed, "contentChanges": [{"text": text}]})
        *_, last = lines = text.split("\n")
        position = {"line": len(lines) - 1, "character": len(last)}
        found = server.ask("textDocument/completion", {"textDocument": {"uri": uri}, "position": position})
        return {item["label"] for item in found["items"]}

    yield complete
    server.close()


@pytest.mark.timeout(120)  # pyright starts slowly
@pytest.mark.parametrize("call", CALLS)
def test_pyright_offers_every_keyword(pyright: Callable[[str], set[str]], call: str) -> None:
    offered = {label.removesuffix("=") for label in pyright(f"{PREAMBLE}\n{call}(")}
    assert keywords(CALLS[call]) <= offered
