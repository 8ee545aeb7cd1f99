"""The public names, the options that users can pass on, and the direction of imports inside the package."""

import ast
import importlib.metadata
import inspect
import subprocess
import typing

import pytest

import openai_cancel
from openai_cancel import AsyncSession, CallOptions, Options, RequestOptions, Session


def test_all_lists_what_can_be_imported_in_order() -> None:
    assert openai_cancel.__all__ == sorted(openai_cancel.__all__)
    for name in openai_cancel.__all__:
        getattr(openai_cancel, name)


def test_a_name_is_what_the_import_for_type_checkers_says() -> None:
    tree = ast.parse(inspect.getsource(openai_cancel))
    imports = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.module != "typing"]
    homes = {name.name: node.module for node in imports for name in node.names if node.module != "importlib"}
    assert set(homes) - {"util"} >= set(openai_cancel.__all__)
    for name in openai_cancel.__all__:
        assert getattr(openai_cancel, name) is getattr(importlib.import_module(homes[name]), name)
    assert {*openai_cancel.__all__} <= {*dir(openai_cancel)}


def test_names_are_imported_when_they_are_used(python: str) -> None:
    script = """
import sys, openai_cancel
assert "aiohttp" not in sys.modules
openai_cancel.ConflictError
assert "aiohttp" not in sys.modules
assert openai_cancel.retry.MIN_POLL
for name in ("Sesion", "_private", "__wrapped__"):
    assert not hasattr(openai_cancel, name), name
from openai_cancel import *
import pickle
assert pickle.loads(pickle.dumps(AsyncSession)) is AsyncSession is openai_cancel.AsyncSession
assert "AsyncSession" in vars(openai_cancel)
"""
    subprocess.run([python, "-c", script], timeout=50, check=True)


@pytest.mark.slow
@pytest.mark.parametrize(
    "module", ["session", "sync", "errors", "cli", "ledger", "emulator", "models", "pytest_plugin"]
)
def test_every_module_can_be_imported_first(python: str, module: str) -> None:
    subprocess.run(
        [python, "-c", f"import openai_cancel.{module}; from openai_cancel import Session"], timeout=50, check=True
    )


def test_annotations_can_be_read_at_run_time() -> None:
    for call in (AsyncSession.cancel, Session.retrieve):
        assert typing.get_type_hints(call)["return"] is openai_cancel.Response
        inspect.signature(call, eval_str=True)


def test_the_version_is_that_of_the_distribution() -> None:
    assert openai_cancel.__version__ == importlib.metadata.version("openai-cancel")


def test_importing_the_package_imports_neither_the_command_nor_the_emulator(python: str) -> None:
    script = """
import sys, openai_cancel
unwanted = {"cyclopts", "rich", "openai", "sqlalchemy", "openai_cancel.cli", "openai_cancel.emulator"}
assert not unwanted & set(sys.modules), unwanted & set(sys.modules)
"""
    subprocess.run([python, "-c", script], timeout=50, check=True)


def test_imports_point_in_one_direction(python: str, request: pytest.FixtureRequest) -> None:
    """In another process, because the linter turns all loggers off."""
    script = "from importlinter.cli import lint_imports; raise SystemExit(lint_imports(no_cache=True))"
    done = subprocess.run(
        [python, "-c", script], cwd=request.config.rootpath, capture_output=True, text=True, timeout=50, check=False
    )
    assert done.returncode == 0, done.stdout


class TestTypedDictsOfOptions:
    """Code that passes options on annotates its `**options` with these, so they must be the real keywords."""

    @staticmethod
    def keywords(function: typing.Callable[..., object]) -> dict[str, object]:
        parameters = inspect.signature(function).parameters.values()
        hints = typing.get_type_hints(function)
        return {each.name: hints[each.name] for each in parameters if each.kind is each.KEYWORD_ONLY}

    @pytest.mark.parametrize("session", [AsyncSession, Session])
    @pytest.mark.parametrize("call", ["cancel", "retrieve"])
    def test_call_options_are_the_keywords_of_cancel_and_retrieve(self, session: type, call: str) -> None:
        assert typing.get_type_hints(CallOptions) == self.keywords(getattr(session, call))

    @pytest.mark.parametrize("session", [AsyncSession, Session])
    @pytest.mark.parametrize(
        ("call", "own"),
        [
            ("guard", {"grace", "poll", "on_exit", "max_age"}),
            ("watch", {"grace"}),
            (
                "wait",
                {
                    *("timeout", "queued_timeout", "stalled_timeout"),
                    *("poll", "stream", "on_update", "on_abandon", "grace", "max_age"),
                },
            ),
        ],
    )
    def test_request_options_are_the_keywords_of_guard_and_wait_except_their_own(
        self, session: type, call: str, own: set[str]
    ) -> None:
        keywords = self.keywords(getattr(session, call))
        own = own | ({"abandoned"} if session is AsyncSession and call != "watch" else set())
        assert typing.get_type_hints(RequestOptions) == {
            name: kind for name, kind in keywords.items() if name not in own
        }
        assert own <= keywords.keys()

    @pytest.mark.parametrize("session", [AsyncSession, Session])
    @pytest.mark.parametrize(
        ("constructor", "own"),
        [
            ("__init__", {"api_key", "base_url", "organization", "project"}),
            ("azure", {"api_key", "token_provider", "api_version"}),
            ("from_openai", set()),
        ],
    )
    def test_options_are_the_keywords_of_every_constructor_except_its_own(
        self, session: type, constructor: str, own: set[str]
    ) -> None:
        keywords = self.keywords(getattr(session, constructor))
        own = own | ({"client_session"} if session is AsyncSession else set())
        assert typing.get_type_hints(Options) == {name: kind for name, kind in keywords.items() if name not in own}
        assert own <= keywords.keys()

    def test_no_key_is_required(self) -> None:
        for options in (CallOptions, Options, RequestOptions):
            assert not options.__required_keys__


@pytest.mark.parametrize("name", ["nothing", "_nothing", "a.b", "", "é x"])
def test_a_name_that_does_not_exist_is_an_attribute_error(name: str) -> None:
    assert not hasattr(openai_cancel, name)
