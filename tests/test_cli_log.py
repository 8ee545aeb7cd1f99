"""The log of a run."""

import errno
import json
import math
import os
from pathlib import Path

import pytest
from outcomes import MISSING, outcome

from openai_cancel.cli import log as log_module
from openai_cancel.cli.log import Log


def documents(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_each_outcome_is_a_line_at_once(tmp_path: Path) -> None:
    path = tmp_path / "log"
    with Log(path) as log:
        log.write(outcome())
        assert len(documents(path)) == 1
        log.write(MISSING)
    first, second = documents(path)
    assert first.pop("at") <= second.pop("at")
    assert first == {
        "id": "resp_1", "verdict": "cancelled", "stopped": True, "status": "cancelled", "attempts": 1,
        "elapsed": 0.25, "request_id": "req_1", "error": None,
    }  # fmt: skip
    assert (second["stopped"], second["status"]) == (False, None)
    assert second["error"] == {
        "type": "NotFoundError", "message": str(MISSING.error), "status": 404, "code": None, "request_id": "r"
    }  # fmt: skip
    assert path.stat().st_mode & 0o777 == 0o600
    assert not log.failed


def test_a_run_appends_to_the_log_of_an_earlier_one(tmp_path: Path) -> None:
    path = tmp_path / "log"
    for _ in range(2):
        with Log(path) as log:
            log.write(outcome())
    assert len(documents(path)) == 2


def test_a_partial_last_line_does_not_spoil_the_next_one(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_text('{"id": "resp_0", "stop')
    with Log(path) as log:
        log.write(outcome())
        assert log.stopped() == {"resp_1"}


def test_the_last_line_about_an_id_decides_whether_it_is_stopped(tmp_path: Path) -> None:
    path = tmp_path / "log"
    lines = [
        {"id": "a", "stopped": True},
        {"id": "b", "stopped": False},
        {"id": "c", "stopped": True},
        {"id": "b", "stopped": True},
        {"id": "c", "stopped": False},
        {"id": "d", "stopped": 1},
        {"id": ["e"], "stopped": True},
        {"stopped": True},
        ["f"],
    ]
    path.write_text("\n".join(map(json.dumps, lines)) + '\nnonsense\n\xff\n{"id": "g"')
    with Log(path) as log:
        assert log.stopped() == {"a", "b"}


def test_a_line_with_half_of_a_surrogate_pair_counts(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_text('{"id": "resp_1", "stopped": true, "error": "\\ud800"}\n')
    with Log(path) as log:
        assert log.stopped() == {"resp_1"}


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("other", [1, 2**70, "\ud800"])
def test_a_number_that_json_does_not_have_is_null(tmp_path: Path, number: float, other: object) -> None:
    path = tmp_path / "log"
    with Log(path) as log:
        log.write(outcome(), {"x": [number], "y": other})
    (document,) = (json.loads(line, parse_constant=pytest.fail) for line in path.read_text().splitlines())
    assert document["input"] == {"x": [None], "y": other}


def test_the_log_is_flushed_to_the_disk_every_second(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now, synced = 0.0, []
    monkeypatch.setattr(log_module, "monotonic", lambda: now)
    monkeypatch.setattr(os, "fsync", lambda _: synced.append(now))
    with Log(tmp_path / "log") as log:
        for moment in (0.1, 0.9, 1.0, 1.5, 1.9, 2.1):
            now = moment
            log.write(outcome())
    assert synced == [1.0, 2.1, 2.1]


@pytest.mark.parametrize("written", [0, 10])
def test_a_full_disk_is_reported_once_and_later_lines_are_complete(
    tmp_path: Path, monkeypatch, capsys, written: int
) -> None:
    path = tmp_path / "log"
    write = os.write

    def full(file: int, data: bytes) -> int:
        if written:
            return write(file, data[:written])
        raise OSError(errno.ENOSPC, "No space left on device")

    with Log(path) as log:
        log.write(outcome("resp_1"))
        with monkeypatch.context() as patched:
            patched.setattr(os, "write", full)
            log.write(outcome("resp_2"))
            log.write(outcome("resp_3"))
        log.write(outcome("resp_4"))
        assert log.stopped() == {"resp_1", "resp_4"}
    assert log.failed
    words = "openai-cancel: the log is incomplete from here on: No space left on device\n"
    assert capsys.readouterr().err == words


@pytest.mark.parametrize("path", ["/dev/null", "/none/log", "."])
def test_only_a_regular_file_can_be_a_log(path: str) -> None:
    with pytest.raises(OSError, match=path):
        Log(Path(path))
