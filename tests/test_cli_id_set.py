"""The ids that have occurred in a run, and the temporary file that holds them."""

import sqlite3

import pytest

from openai_cancel.cli import id_set
from openai_cancel.cli.id_set import IdSet
from openai_cancel.cli.temporary_database import temporary_database


def test_an_id_is_new_once() -> None:
    ids = IdSet()
    assert [ids.add(name) for name in ["a", "b", "a"]] == [True, True, False]
    ids.close()


def test_many_ids_are_kept_in_a_temporary_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(id_set, "IN_MEMORY", 2)
    ids = IdSet()
    names = ["a", "b", "c", "é/+", "c", "a", "é/+", "d"]
    assert [ids.add(name) for name in names] == [True, True, True, True, False, False, False, True]
    ids.close()


def test_if_the_file_fails_ids_count_as_new(monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.setattr(id_set, "IN_MEMORY", 1)
    small = temporary_database()
    small.execute("PRAGMA max_page_count=2")
    monkeypatch.setattr(id_set, "temporary_database", lambda: small)
    ids = IdSet()
    assert ids.add("a")
    for number in range(2):
        assert all(ids.add(f"{name}{'x' * 1000}") for name in range(10 * number, 10 * number + 10))
    assert ids.add("y")
    assert ids.add("y")
    assert not ids.add("a")
    ids.close()
    assert capsys.readouterr().err == (
        "openai-cancel: repeated ids are no longer recognized: database or disk is full\n"
    )
    with pytest.raises(sqlite3.ProgrammingError):
        small.execute("SELECT 1")  # it is closed
