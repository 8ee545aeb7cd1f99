"""The report of a run, and what it prints."""

import json

import pytest
from outcomes import MISSING, outcome

from openai_cancel import Outcome
from openai_cancel.cli.output import printable
from openai_cancel.cli.report import Report


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
    def test_no_text_can_control_a_terminal(self, text: str, shown: str) -> None:
        assert printable(text) == shown


class TestReport:
    """With output into a pipe; tests/test_cli_terminal.py has a terminal."""

    def show(self, outcomes: list[Outcome], **options: bool) -> Report:
        shown = Report(**{"as_json": False, "quiet": False, "show_stopped": True, **options})
        with shown.bar(total=lambda: 1, under_way=lambda: 0):
            for one in outcomes:
                shown.show(one)
        shown.sum_up()
        return shown

    def test_into_a_pipe_outcomes_are_json_lines_and_the_totals_a_table(self, capsys) -> None:
        self.show([outcome(), MISSING])
        out, err = capsys.readouterr()
        assert [json.loads(line)["id"] for line in out.splitlines()] == ["resp_1", "resp_2"]
        assert [line.split()[:3] for line in err.splitlines()][:2] == [["cancelled", "1"], ["not", "found", "1"]]
        assert "in all" in err

    def test_quiet_shows_only_what_did_not_stop(self, capsys) -> None:
        self.show([outcome(), MISSING], quiet=True)
        out, err = capsys.readouterr()
        assert out == ""
        assert err.startswith("openai-cancel: resp_2 not found: 404: no such id")
        assert err.count("\n") == 1

    def test_quiet_with_json_shows_outcomes_and_no_totals(self, capsys) -> None:
        self.show([outcome()], quiet=True, as_json=True)
        out, err = capsys.readouterr()
        assert (out.count("\n"), err) == (1, "")

    def test_only_the_first_problems_of_a_file_are_shown(self, capsys) -> None:
        self.show([MISSING] * 25, quiet=True, show_stopped=False)
        assert capsys.readouterr().err.splitlines()[20:] == [
            "openai-cancel: 5 more are not shown: use --log or --json to see all of them"
        ]
        self.show([MISSING] * 25, quiet=True)
        assert len(capsys.readouterr().err.splitlines()) == 25

    def test_a_bad_line_is_counted_and_reported(self, capsys) -> None:
        shown = self.show([], quiet=True)
        shown.complain_of_line("ids.txt, line 3: contains a space")
        assert capsys.readouterr().err == "openai-cancel: ids.txt, line 3: contains a space\n"
        assert shown.tally.bad == 1
