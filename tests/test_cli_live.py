"""The progress of a run; tests/test_cli_terminal.py has a terminal."""

import io
from functools import partial

from outcomes import MISSING, ended, outcome, response
from rich.console import Console
from rich.progress import Progress

from openai_cancel.cli.lines import line_of
from openai_cancel.cli.live import Bar, MakeProgress, Spinner, WaitBar
from openai_cancel.cli.statuses import Statuses
from openai_cancel.cli.tally import Tally

NOW = 1_800_000_000.0


class Times:
    """Two clocks that a test moves."""

    def __init__(self) -> None:
        self.passed = 0.0

    def monotonic(self) -> float:
        return 5.0 + self.passed

    def wall(self) -> float:
        return NOW + self.passed

    def statuses(self) -> Statuses:
        return Statuses(monotonic=self.monotonic, wall=self.wall)


def draw(make: MakeProgress, tally: Tally, *, width: int = 100, total: int | None = 4, under_way: int = 7) -> str:
    console = Console(width=width, file=io.StringIO(), force_terminal=True, no_color=True)
    progress = make(tally, console, total=lambda: total, under_way=lambda: under_way)
    assert isinstance(progress, Progress)
    console.print(progress.get_renderable())
    return console.file.getvalue()


class TestBar:
    def show(self, width: int, total: int | None) -> str:
        tally = Tally()
        tally.note(line_of(outcome()))
        tally.note(line_of(MISSING))
        return draw(Bar, tally, width=width, total=total)

    def test_a_wide_terminal_shows_every_column(self) -> None:
        picture = self.show(100, 4)
        assert "2/4" in picture
        assert "7 under way" in picture
        assert "━" in picture
        assert "cancelled 1  not found 1" in picture

    def test_a_narrow_terminal_shows_fewer_columns(self) -> None:
        picture = self.show(40, 4000)
        assert "2/4000" in picture
        assert "━" not in picture
        assert "under way" not in picture
        assert "cancelled 1  not found 1" in picture

    def test_a_total_that_is_not_known_is_a_question_mark(self) -> None:
        assert "2/?" in self.show(100, None)


class TestStatuses:
    def test_statuses_are_counted_and_the_oldest_response_is_found(self) -> None:
        times = Times()
        statuses = times.statuses()
        assert (dict(statuses.counts()), statuses.oldest()) == ({}, None)
        statuses.see(response(id="young", status="queued", created_at=NOW - 60))
        statuses.see(response(id="old", status="in_progress", created_at=NOW - 3600))
        statuses.see(response(id="unknown", status="queued"))
        assert statuses.counts() == {"queued": 2, "in_progress": 1}
        oldest = statuses.oldest()
        assert (oldest.response_id, statuses.age(oldest.created), statuses.age(oldest.since)) == (
            "old",
            "1:00:00",
            "0:00:00",
        )

    def test_a_status_is_as_old_as_the_time_since_it_was_first_seen(self) -> None:
        times = Times()
        statuses = times.statuses()
        for status, since in [("queued", "0:00:00"), ("queued", "0:01:00"), ("in_progress", "0:00:00")]:
            statuses.see(response(id="x", status=status))
            assert statuses.age(statuses.oldest().since) == since
            times.passed += 60
        assert statuses.age(statuses.oldest().created) == "0:03:00"

    def test_a_response_from_the_future_has_just_been_created(self) -> None:
        statuses = Times().statuses()
        statuses.see(response(id="x", status="queued", created_at=NOW + 60))
        assert statuses.age(statuses.oldest().created) == "0:00:00"

    def test_an_ended_response_is_forgotten_also_if_the_server_has_another_id_for_it(self) -> None:
        statuses = Times().statuses()
        statuses.see(response(id="resp_1", status="queued"))
        statuses.see(response(id="theirs", status="completed"))
        statuses.forget(MISSING)
        assert statuses.counts().total() == 2
        statuses.forget(ended("resp_1"))
        statuses.forget(outcome("ours", response=response(id="theirs", status="completed")))
        assert statuses.oldest() is None

    def test_a_status_of_the_server_cannot_control_the_terminal(self) -> None:
        statuses = Times().statuses()
        statuses.see(response(id="x", status="\x1b[2J"))
        assert statuses.oldest().status == r"\x1b[2J"


class TestWaitBar:
    def test_it_shows_how_many_wait_by_status_and_the_oldest(self) -> None:
        times, tally = Times(), Tally()
        statuses = times.statuses()
        statuses.see(response(id="resp_old", status="queued", created_at=NOW - 3600))
        statuses.see(response(id="resp_new", status="in_progress", created_at=NOW))
        times.passed = 90
        tally.note(line_of(ended()))
        picture = draw(partial(WaitBar, statuses=statuses), tally)
        assert "1/4 ended" in picture
        assert "7 waiting" in picture
        assert "waiting 7:  queued 1  in_progress 1  not seen yet 5" in picture
        assert "oldest 1:01:30: resp_old, queued for 0:01:30" in picture
        assert "completed 1" in picture

    def test_before_the_first_answer_nothing_is_the_oldest(self) -> None:
        picture = draw(partial(WaitBar, statuses=Statuses()), Tally(), under_way=0)
        assert "waiting 0:" in picture
        assert "oldest" not in picture

    def test_a_line_is_never_broken(self) -> None:
        statuses = Times().statuses()
        statuses.see(response(id="resp_" + "x" * 400, status="queued"))
        assert "…" in draw(partial(WaitBar, statuses=statuses), Tally(), width=60)


class TestSpinner:
    def test_it_shows_the_status_and_the_age(self) -> None:
        times = Times()
        statuses = times.statuses()
        make = partial(Spinner, statuses=statuses)
        tally = Tally(began=5.0)
        times.passed = 3
        assert "no answer yet, 0:00:03" in draw(make, tally)
        statuses.see(response(id="resp_[red]", status="in_progress", created_at=NOW - 60))
        assert "resp_[red]  in_progress  0:01:03" in draw(make, tally)
