"""What users import, and the shape that the package keeps."""

import importlib.metadata
import inspect
import subprocess
import typing

import pytest
from importlinter.cli import lint_imports

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
unwanted = {"cyclopts", "rich", "openai", "openai_cancel.cli", "openai_cancel.emulator"}
assert not unwanted & set(sys.modules), unwanted & set(sys.modules)
"""
    subprocess.run([python, "-c", script], check=True)


def test_imports_point_one_way(capsys: pytest.CaptureFixture[str], request: pytest.FixtureRequest) -> None:
    config = str(request.config.rootpath / "pyproject.toml")
    assert lint_imports(config_filename=config, no_cache=True) == 0, capsys.readouterr().out
