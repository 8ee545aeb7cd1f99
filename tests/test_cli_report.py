"""What is shown of a run, and kept of it."""

import errno
import io
import json
import os
from pathlib import Path

import pytest
from rich.console import Console

from openai_cancel import NotFoundError, Outcome, Response, Verdict
from openai_cancel.cli import report
from openai_cancel.cli.report import Bar, Log, Report, Tally, printable
from openai_cancel.converter import response_hook


def response(**document: object) -> Response:
    return response_hook()(document)


def outcome(response_id: str = "resp_1", verdict: Verdict = Verdict.CANCELLED, **values: object) -> Outcome:
    state = response(id=response_id, status="cancelled") if verdict is Verdict.CANCELLED else None
    defaults = {"response": state, "error": None, "attempts": 1, "elapsed": 0.25, "request_id": "req_1"}
    return Outcome(response_id=response_id, verdict=verdict, **{**defaults, **values})


MISSING = outcome(
    "resp_2", Verdict.NOT_FOUND, error=NotFoundError("no such id", status=404, headers={}, body=b"", request_id="r")
)


class TestPrintable:
    @pytest.mark.parametrize(
        ("text", "shown"),
        [
            ("all  good é", "all  good é"),
            ("two\nlines\tand more", "two lines and more"),
            ("\x1b[31mred\x07\x9b", r"\x1b[31mred\x07\x9b"),
            ("\ud800\u202e", r"\ud800\u202e"),
        ],
    )
    def test_nothing_can_steer_a_terminal(self, text: str, shown: str) -> None:
        assert printable(text) == shown


class TestLog:
    def lines(self, path: Path) -> list[dict[str, object]]:
        return [json.loads(line) for line in path.read_text().splitlines()]

    def test_a_line_for_each(self, tmp_path: Path) -> None:
        path = tmp_path / "log"
        with Log(path) as log:
            log.write(outcome())
            assert len(self.lines(path)) == 1  # at once
            log.write(MISSING)
        first, second = self.lines(path)
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

    def test_a_run_adds_to_the_one_before(self, tmp_path: Path) -> None:
        path = tmp_path / "log"
        for _ in range(2):
            with Log(path) as log:
                log.write(outcome())
        assert len(self.lines(path)) == 2

    def test_a_line_that_was_cut_off_spoils_no_other(self, tmp_path: Path) -> None:
        path = tmp_path / "log"
        path.write_text('{"id": "resp_0", "stop')
        with Log(path) as log:
            log.write(outcome())
            assert log.stopped() == {"resp_1"}

    def test_the_last_word_counts(self, tmp_path: Path) -> None:
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

    def test_on_the_disk_after_a_second(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        now, synced = 0.0, []
        monkeypatch.setattr(report, "monotonic", lambda: now)
        monkeypatch.setattr(os, "fsync", lambda _: synced.append(now))
        with Log(tmp_path / "log") as log:
            for now in (0.1, 0.9, 1.0, 1.5, 1.9, 2.1):  # noqa: B007 - read by the clock
                log.write(outcome())
        assert synced == [1.0, 2.1, 2.1]

    @pytest.mark.parametrize("written", [0, 10])
    def test_a_full_disk(self, tmp_path: Path, monkeypatch, capsys, written: int) -> None:
        """It is said once, and what comes when there is room again is whole."""
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
        words = "openai-cancel: the log is not complete from here on: No space left on device\n"
        assert capsys.readouterr().err == words

    @pytest.mark.parametrize("path", ["/dev/null", "/none/log", "."])
    def test_what_can_be_no_log(self, path: str) -> None:
        with pytest.raises(OSError, match=path):
            Log(Path(path))


class TestTally:
    def test_counts(self) -> None:
        tally = Tally()
        assert tally.all_stopped
        for _ in range(1200):
            tally.note(outcome())
        assert tally.all_stopped
        assert tally.line().plain == "cancelled 1,200"
        tally.skipped = 3
        assert tally.all_stopped
        tally.note(MISSING)
        assert not tally.all_stopped
        assert tally.line().plain == "cancelled 1,200  not found 1  stopped before 3"

    def test_a_bad_line_is_not_stopped(self) -> None:
        tally = Tally(bad=1)
        assert not tally.all_stopped
        assert tally.line().plain == "bad lines 1"

    def test_a_response_that_is_over_without_a_word_of_it(self) -> None:
        tally = Tally()
        tally.note(outcome(verdict=Verdict.NOT_BACKGROUND, response=response(id="x", status="completed")))
        assert tally.all_stopped


class TestBar:
    def show(self, width: int, total: int | None) -> str:
        console = Console(width=width, file=io.StringIO(), force_terminal=True, no_color=True)
        tally = Tally()
        bar = Bar(tally, console, total=lambda: total, under_way=lambda: 7)
        tally.note(outcome())
        tally.note(MISSING)
        console.print(bar.get_renderable())
        return console.file.getvalue()

    def test_wide(self) -> None:
        picture = self.show(100, 4)
        assert "2/4" in picture
        assert "7 under way" in picture
        assert "━" in picture
        assert "cancelled 1  not found 1" in picture

    def test_narrow(self) -> None:
        picture = self.show(40, 4000)
        assert "2/4000" in picture
        assert "━" not in picture
        assert "under way" not in picture
        assert "cancelled 1  not found 1" in picture

    def test_no_end_in_sight(self) -> None:
        assert "2/?" in self.show(100, None)


class TestReport:
    """Into pipes; the command's tests have a terminal."""

    def show(self, outcomes: list[Outcome], **options: bool) -> Report:
        shown = Report(**{"as_json": False, "quiet": False, "each": True, **options})
        with shown.bar(total=lambda: 1, under_way=lambda: 0):
            for one in outcomes:
                shown.show(one)
        shown.sum_up()
        return shown

    def test_json_lines_and_a_table(self, capsys) -> None:
        self.show([outcome(), MISSING])
        out, err = capsys.readouterr()
        assert [json.loads(line)["id"] for line in out.splitlines()] == ["resp_1", "resp_2"]
        assert [line.split()[:3] for line in err.splitlines()][:2] == [["cancelled", "1"], ["not", "found", "1"]]
        assert "in all" in err

    def test_quiet(self, capsys) -> None:
        self.show([outcome(), MISSING], quiet=True)
        out, err = capsys.readouterr()
        assert out == ""
        assert err.startswith("openai-cancel: resp_2 not found: 404: no such id")
        assert err.count("\n") == 1

    def test_quiet_and_json(self, capsys) -> None:
        self.show([outcome()], quiet=True, as_json=True)
        out, err = capsys.readouterr()
        assert (out.count("\n"), err) == (1, "")

    def test_only_so_many_that_did_not_stop(self, capsys) -> None:
        self.show([MISSING] * 25, quiet=True, each=False)
        assert capsys.readouterr().err.splitlines()[20:] == [
            "openai-cancel: 5 more did not stop: --log or --json shows all"
        ]
        self.show([MISSING] * 25, quiet=True)
        assert len(capsys.readouterr().err.splitlines()) == 25

    def test_lines_that_gave_no_id(self, capsys) -> None:
        shown = self.show([], quiet=True)
        shown.complain_of_line("ids.txt, line 3: holds a space")
        assert capsys.readouterr().err == "openai-cancel: ids.txt, line 3: holds a space\n"
        assert shown.tally.bad == 1
