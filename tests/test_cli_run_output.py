"""The report of a run, and what it prints."""

import json
from collections.abc import AsyncGenerator, AsyncIterable
from contextlib import nullcontext

import pytest
from outcomes import MISSING, outcome, response

from openai_cancel import APIConnectionError, NotFoundError, Outcome, Verdict
from openai_cancel.cli.ids import BadLine, Source
from openai_cancel.cli.output import printable
from openai_cancel.cli.run import Run
from openai_cancel.cli.run_output import RunOutput


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

    def show(self, outcomes: list[Outcome], **options: bool) -> RunOutput:
        shown = RunOutput(**{"as_json": None, "quiet": False, "show_stopped": True, **options})
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
        shown.complain_of_line(BadLine(3, "contains a space", file="ids.txt"))
        assert capsys.readouterr().err == "openai-cancel: ids.txt, line 3: contains a space\n"
        assert shown.tally.bad == 1

    def test_blank_ids_are_summed_up_by_file(self, capsys) -> None:
        shown = self.show([], quiet=True)
        for number in range(2, 32):
            shown.complain_of_line(BadLine(number, "has no id", is_blank=True, file="jobs.csv"))
        shown.complain_of_line(BadLine(7, "has no id", is_blank=True, file="more.csv"))
        assert capsys.readouterr().err == ""
        shown.sum_up()
        assert capsys.readouterr().err.splitlines() == [
            "openai-cancel: jobs.csv: 30 rows have no id: lines 2, 3, 4, 5, 6, …",
            "openai-cancel: more.csv: 1 row has no id: line 7",
        ]
        assert (shown.tally.bad, shown.tally.blank) == (0, 31)

    def test_only_the_first_bad_lines_are_shown(self, capsys) -> None:
        shown = self.show([], quiet=True, has_log=True)
        for number in range(1, 26):
            shown.complain_of_line(BadLine(number, "is not JSON", file="ids"))
        shown.sum_up()
        assert capsys.readouterr().err.splitlines()[20:] == [
            "openai-cancel: 5 more bad lines are not shown: the log has all of them"
        ]

    def test_a_dry_run_says_what_would_be_stopped(self, capsys) -> None:
        running = outcome("resp_3", Verdict.STILL_RUNNING, response=response(id="resp_3", status="in_progress"))
        self.show([running, MISSING], dry_run=True, as_json=False)
        out, err = capsys.readouterr()
        assert err == ""
        assert out.splitlines()[0] == "resp_3  would be stopped (in_progress)"
        assert out.splitlines()[2].split() == ["not", "found", "1"]
        assert out.splitlines()[3].split() == ["would", "be", "stopped", "1"]
        assert out.splitlines()[-1] == "This was a dry run: nothing was stopped."
        self.show([running, MISSING], dry_run=True, quiet=True)
        assert capsys.readouterr().err.splitlines()[0] == "openai-cancel: resp_3 would be stopped (in_progress)"

    def test_json_has_the_other_columns_of_the_input_and_the_verdict_also_in_a_dry_run(self, capsys) -> None:
        shown = RunOutput(as_json=None, quiet=False, show_stopped=True, dry_run=True)
        shown.show(outcome("resp_3", Verdict.STILL_RUNNING), {"job": "7"})
        shown.show(outcome())
        first, second = map(json.loads, capsys.readouterr().out.splitlines())
        assert (first["verdict"], first["input"]) == ("still_running", {"job": "7"})
        assert "input" not in second

    def test_text_and_totals_go_to_standard_output_if_json_is_not_wanted(self, capsys) -> None:
        self.show([outcome(), MISSING], as_json=False)
        out, err = capsys.readouterr()
        assert err == ""
        assert out.splitlines()[:2] == [
            "resp_1  cancelled",
            f"resp_2  not found: 404: no such id. {NotFoundError.hint} (request id r)",
        ]
        assert "in all" in out


@pytest.mark.parametrize("ids", [["resp_2"], ["resp_2", "resp_3"]])
async def test_a_server_that_went_away_is_reported_if_a_response_has_no_result(capsys, ids: list[str]) -> None:
    async def handle(names: AsyncIterable[str]) -> AsyncGenerator[Outcome]:
        assert [name async for name in names] == ids
        yield MISSING  # resp_2
        raise APIConnectionError("It went away.")

    run = Run(RunOutput(as_json=True, quiet=True, show_stopped=True))
    with Source(ids, [], complain=run.complain_of_line, skip=run.skips) as source:
        await run.handle_all(source, nullcontext(), handle)
    run.close()
    words = "openai-cancel: It went away. The remaining ids are not tried.\n"
    assert (run.status, capsys.readouterr().err) == (1, words if len(ids) > 1 else "")
