"""Editors and notebooks offer every keyword of every public call, and show its signature and its documentation.

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
from processes import running_beside

import openai_cancel
from openai_cancel import (
    AsyncSession,
    BlockingWatch,
    Clock,
    Guard,
    Outcome,
    Response,
    Session,
    WaitResult,
    Watch,
)
from openai_cancel.emulator import Dialect, Emulator, Fault, List, Received, Reply, Script, Work
from openai_cancel.ledger import BlockingLedger, Entry, Finding, Group, Ledger, Stats

pytestmark = pytest.mark.slow

PREAMBLE = """
import openai
from openai_cancel import AsyncSession, Clock, Session
from openai_cancel.emulator import Dialect, Emulator, Fault, List, Reply, Script
from openai_cancel.ledger import Group, Ledger
asynchronous = AsyncSession()
blocking = Session()
ledger = Ledger("sqlite:///ledger.db")
emulator = Emulator()
clock = Clock()
client = openai.OpenAI()
outcome = blocking.stop("resp_123")
response = blocking.cancel("resp_123")
watch = asynchronous.watch(client)
blocking_watch = blocking.watch(client)
with blocking.guard(client) as guard:
    ...
for result in blocking.wait_many(["resp_123"]):
    ...
for running in blocking.running():
    ...
for entry in blocking.ledger.entries():
    ...
for received in emulator.received:
    ...
work = emulator.responses["resp_123"]
stats = blocking.ledger.stats()
group: Group = stats.groups[0]
for finding in blocking.ledger.reconcile():
    ...
"""

OBJECTS: dict[str, type] = {
    "asynchronous": AsyncSession,
    "blocking": Session,
    "ledger": Ledger,
    "blocking.ledger": BlockingLedger,
    "emulator": Emulator,
    "clock": Clock,
    "outcome": Outcome,
    "response": Response,
    "running": Response,
    "watch": Watch,
    "blocking_watch": BlockingWatch,
    "guard": Guard,
    "result": WaitResult,
    "entry": Entry,
    "received": Received,
    "work": Work,
    "stats": Stats,
    "group": Group,
    "finding": Finding,
}
"""The public objects that have methods or attributes, by their name in the code above."""

CLASSES: dict[str, type] = {
    cls.__name__: cls for cls in (AsyncSession, Session, Ledger, Emulator, Script, Fault, Dialect, List, Reply, Clock)
}


def methods(cls: type) -> dict[str, Callable[..., Any]]:
    """Return the public methods of a class, class methods included, and those of its bases in this package."""
    members = inspect.getmembers(cls, lambda member: inspect.isfunction(member) or inspect.ismethod(member))
    return {name: method for name, method in members if not name.startswith("_")}


CALLS: dict[str, Callable[..., Any]] = {
    **CLASSES,
    **{
        f"{cls.__name__}.{call}": getattr(cls, call)
        for cls in (AsyncSession, Session)
        for call in ("azure", "from_openai")
    },
    **{f"{name}.{call}": method for name, cls in OBJECTS.items() for call, method in methods(cls).items()},
}


def keywords(call: Callable[..., Any]) -> set[str]:
    """The names of the arguments that can be passed by keyword."""
    by_keyword = {inspect.Parameter.KEYWORD_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD}
    parameters = inspect.signature(call).parameters.values()
    return {parameter.name for parameter in parameters if parameter.kind in by_keyword} - {"self"}


def parameters(call: Callable[..., Any]) -> set[str]:
    """The names of all arguments."""
    return {*inspect.signature(call).parameters} - {"self"}


def attributes(cls: type) -> set[str]:
    """The public attributes of a class: its methods, its properties, and the fields of a class made by attrs."""
    fields = {field.name for field in getattr(cls, "__attrs_attrs__", ()) if not field.name.startswith("_")}
    return fields | {name for name in dir(cls) if not name.startswith("_")}


def first_sentence(call: Callable[..., Any]) -> str:
    return inspect.getdoc(call).splitlines()[0]


def test_every_public_class_with_methods_is_asked_for() -> None:
    """Except for exceptions."""
    modules = (openai_cancel, openai_cancel.emulator, openai_cancel.ledger)
    exported = [getattr(module, name) for module in modules for name in module.__all__]
    classes = {each for each in exported if inspect.isclass(each) and methods(each)}
    exceptions = {each for each in classes if issubclass(each, BaseException)}
    assert classes - exceptions == {*OBJECTS.values(), *CLASSES.values()} & classes
    assert len(CALLS) > 80


NOTEBOOK = "\n".join([PREAMBLE, *[f"{call}()" for call in CALLS], *[f"{name}.attribute" for name in OBJECTS]])
"""Each call and each object once, because editors analyze a file only once."""


def place(text: str, end: str) -> tuple[int, int]:
    """Return the line, from 0, and the column after a text of the notebook, which is followed by some end."""
    line = NOTEBOOK.split("\n").index(f"{text}{end}")
    return line, len(text)


@pytest.fixture(scope="module")
def notebook() -> jedi.Script:
    """Jedi, with a process of its own that ends with the environment."""
    script = jedi.Script(NOTEBOOK, environment=jedi.create_environment(sys.executable, safe=False))
    script.complete(1, 0)  # starts the process before the first test, which may leave none behind
    return script


@pytest.mark.parametrize("call", CALLS)
def test_jedi_offers_every_keyword(notebook: jedi.Script, call: str) -> None:
    line, column = place(f"{call}(", ")")
    assert keywords(CALLS[call]) <= {found.name.removesuffix("=") for found in notebook.complete(line + 1, column)}


@pytest.mark.parametrize("name", OBJECTS)
def test_jedi_offers_every_attribute(notebook: jedi.Script, name: str) -> None:
    line, column = place(f"{name}.", "attribute")
    assert attributes(OBJECTS[name]) <= {found.name for found in notebook.complete(line + 1, column)}


@pytest.mark.parametrize("call", CALLS)
def test_jedi_shows_the_signature_and_the_documentation(notebook: jedi.Script, call: str) -> None:
    line, column = place(call, "()")
    (shown,) = (found.docstring() for found in notebook.help(line + 1, column - 1))
    signature, _, documentation = shown.partition("\n\n")
    assert {name for name in parameters(CALLS[call]) if not re.search(rf"\b{name}\b", signature)} == set()
    assert documentation.startswith(first_sentence(CALLS[call]))


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


class Editor:
    """An editor with the notebook, which asks pyright."""

    def __init__(self, server: LanguageServer, root: Path) -> None:
        self._server = server
        self._uri = (root / "notebook.py").as_uri()
        document = {"uri": self._uri, "languageId": "python", "version": 0, "text": NOTEBOOK}
        server.tell("textDocument/didOpen", {"textDocument": document})

    def complete(self, line: int, column: int) -> set[str]:
        """Return what may come at a place."""
        return {item["label"].removesuffix("=") for item in self._ask("completion", line, column)["items"]}

    def hover(self, line: int, column: int) -> str:
        """Return what is shown over a place."""
        return self._ask("hover", line, column)["contents"]["value"]

    def _ask(self, method: str, line: int, column: int) -> Any:
        at = {"textDocument": {"uri": self._uri}, "position": {"line": line, "character": column}}
        return self._server.ask(f"textDocument/{method}", at)


@pytest.fixture(scope="module")
def pyright(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Editor]:
    command = Path(sys.executable).with_name("pyright-langserver")
    if not command.exists() or shutil.which("node") is None:
        pytest.skip("needs pyright: pip install --group lint")
    root = tmp_path_factory.mktemp("completion")
    with running_beside([str(command), "--stdio"], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        server = LanguageServer(process, root)
        yield Editor(server, root)
        server.close()


@pytest.mark.timeout(120)  # pyright starts slowly
@pytest.mark.parametrize("call", CALLS)
def test_pyright_offers_every_keyword(pyright: Editor, call: str) -> None:
    assert keywords(CALLS[call]) <= pyright.complete(*place(f"{call}(", ")"))


@pytest.mark.timeout(120)
@pytest.mark.parametrize("name", OBJECTS)
def test_pyright_offers_every_attribute(pyright: Editor, name: str) -> None:
    assert attributes(OBJECTS[name]) <= pyright.complete(*place(f"{name}.", "attribute"))


@pytest.mark.timeout(120)
@pytest.mark.parametrize("call", CALLS)
def test_pyright_shows_the_signature_and_the_documentation(pyright: Editor, call: str) -> None:
    line, column = place(call, "()")
    signature, _, documentation = pyright.hover(line, column - 1).partition("\n\n")
    assert {name for name in parameters(CALLS[call]) if not re.search(rf"\b{name}\b", signature)} == set()
    assert documentation.startswith(first_sentence(CALLS[call]))
