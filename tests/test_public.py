"""What users import, and the shape that the package keeps."""

import importlib.metadata
import inspect
import subprocess
import typing

import pytest

import openai_cancel


def test_all_is_what_can_be_imported() -> None:
    assert openai_cancel.__all__ == sorted(openai_cancel.__all__)
    for name in openai_cancel.__all__:
        getattr(openai_cancel, name)


def test_annotations_can_be_read_at_run_time() -> None:
    for call in (openai_cancel.AsyncSession.cancel, openai_cancel.Session.retrieve):
        assert typing.get_type_hints(call)["return"] is openai_cancel.Response
        inspect.signature(call, eval_str=True)


def test_the_version_is_that_of_the_distribution() -> None:
    assert openai_cancel.__version__ == importlib.metadata.version("openai-cancel")


def test_importing_it_imports_neither_the_command_nor_the_emulator(python: str) -> None:
    script = """
import sys, openai_cancel
unwanted = {"cyclopts", "rich", "openai", "sqlalchemy", "openai_cancel.cli", "openai_cancel.emulator"}
assert not unwanted & set(sys.modules), unwanted & set(sys.modules)
"""
    subprocess.run([python, "-c", script], check=True)


def test_imports_point_one_way(python: str, request: pytest.FixtureRequest) -> None:
    """In a process of its own, for it switches all loggers off."""
    script = "from importlinter.cli import lint_imports; raise SystemExit(lint_imports(no_cache=True))"
    done = subprocess.run(
        [python, "-c", script], cwd=request.config.rootpath, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout
