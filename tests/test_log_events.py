"""The log is for machines: every record has the documented fields, under a JSON formatter, and nothing of a server."""

import ast
import asyncio
import json
import logging
from collections.abc import Iterator
from pathlib import Path

import pytest
import structlog
from conftest import KEY, QuickSession
from ledger_database import without_table
from ledgers import open_session

import openai_cancel
from openai_cancel import AsyncSession, Outcome, log_events
from openai_cancel.emulator import Emulator, Fault
from openai_cancel.ledger import Ledger
from openai_cancel.log_events import EVENTS, FIELDS

PACKAGE = Path(openai_cancel.__file__).parent
CLIENT = [path for path in sorted(PACKAGE.rglob("*.py")) if "emulator" not in path.parts]
"""The emulator has a logger of its own."""
METHODS = {"debug", "info", "warning", "error", "exception", "critical", "log"}
BUILT_IN = vars(logging.makeLogRecord({})).keys() | {"message", "asctime", "taskName"}
LOGGERS = {"openai_cancel", "openai_cancel.ledger", "openai_cancel.outcomes", "openai_cancel.sweeper"}


class Json(logging.Formatter):
    """Writes what python-json-logger and others write: the message, and every attribute that `extra` has added."""

    def format(self, record: logging.LogRecord) -> str:
        extra = {name: value for name, value in vars(record).items() if name not in BUILT_IN}
        return json.dumps({"level": record.levelname, "logger": record.name, "message": record.getMessage(), **extra})


class Lines(logging.Handler):
    """Collects the lines of a formatter."""

    def __init__(self) -> None:
        super().__init__()
        self.setFormatter(Json())
        self.lines: list[dict] = []

    def emit(self, record: logging.LogRecord) -> None:
        line = self.format(record)
        assert KEY not in line
        assert "secret" not in line
        self.lines.append(json.loads(line))

    def about(self, event: str) -> dict:
        """Return the one line of an event, after a check that every line has all fields, and others are None."""
        for line in self.lines:
            assert {*FIELDS} <= line.keys()
            assert line["logger"] in LOGGERS
            allowed = {"event_name", *(name.replace("error", "error_type") for name in EVENTS[line["event_name"]])}
            assert {name for name in FIELDS if line[name] is not None} <= allowed, line
        (found,) = [line for line in self.lines if line["event_name"] == event]
        return {name: value for name, value in found.items() if value is not None}


@pytest.fixture
def log() -> Iterator[Lines]:
    handler, logger = Lines(), logging.getLogger("openai_cancel")
    logger.addHandler(handler)
    level = logger.level
    logger.setLevel(logging.DEBUG)
    yield handler
    logger.setLevel(level)
    logger.removeHandler(handler)


def log_calls() -> Iterator[tuple[str, ast.Call]]:
    """Yield every call of a logger in the package, with its place."""
    for path in CLIENT:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in METHODS:
                name = node.func.value
                if isinstance(name, ast.Name) and name.id.endswith("log"):
                    yield f"{path.relative_to(PACKAGE)}:{node.lineno}", node


def fields_of(call: ast.Call) -> list[ast.Call]:
    """Return the calls of `log_fields` that make the `extra` of a record, also of one that a variable holds."""
    (extra,) = [keyword.value for keyword in call.keywords if keyword.arg == "extra"] or [None]
    return [extra] if isinstance(extra, ast.Call) else []


class TestEveryLogCall:
    def test_it_has_the_fields_of_its_event(self) -> None:
        calls = dict(log_calls())
        assert len(calls) > 20
        used = set()
        for place, call in calls.items():
            assert any(keyword.arg == "extra" for keyword in call.keywords), f"{place}: no extra"
            for made in fields_of(call):
                assert made.func.id == "log_fields", place
                event = made.args[0].value
                assert {keyword.arg for keyword in made.keywords} == EVENTS[event], place
                used.add(event)
        assert used | {"stopped", "not_stopped"} == set(EVENTS)  # the outcomes have theirs in a variable

    def test_loggers_have_documented_names(self) -> None:
        names = set()
        for path in CLIENT:
            for node in ast.walk(ast.parse(path.read_text())):
                if (
                    isinstance(node, ast.Call)
                    and isinstance(node.func, ast.Attribute)
                    and node.func.attr == "getLogger"
                ):
                    names.add(node.args[0].value)
        assert names == {*LOGGERS, "openai_emulator"}  # the command shows the lines of the emulator
        assert all(f"`{name}`" in log_events.__doc__ for name in LOGGERS)

    def test_the_fields_are_documented_and_collide_with_nothing(self) -> None:
        assert len(set(FIELDS)) == len(FIELDS)
        assert not {*FIELDS} & BUILT_IN
        assert all(f"| `{name}` |" in log_events.__doc__ for name in FIELDS)
        assert log_events.log_fields("attempt").keys() == {*FIELDS}
        # With ecs-logging, fields are keys of a document of Elastic, which is refused if one of these is a text.
        assert not {*FIELDS} & {"agent", "client", "error", "event", "host", "log", "process", "server", "service"}

    def test_structlog_keeps_the_message(self) -> None:
        render = structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[structlog.stdlib.ExtraAdder()],
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                structlog.processors.JSONRenderer(),
            ],
        )
        record = logging.makeLogRecord({"msg": "the message", **log_events.log_fields("stopped", response_id="resp_1")})
        line = json.loads(render.format(record))
        assert (line["event"], line["event_name"], line["response_id"]) == ("the message", "stopped", "resp_1")


class TestOutcomes:
    async def test_one_that_was_stopped_is_information(self, session: QuickSession, create, log: Lines) -> None:
        name = create()
        outcome = await session.stop(name)
        line = log.about("stopped")
        assert line.pop("message").startswith(f"{name}: cancelled (attempts: 1, ")
        assert line == {
            "level": "INFO",
            "logger": "openai_cancel.outcomes",
            "event_name": "stopped",
            "response_id": name,
            "verdict": "cancelled",
            "attempts": 1,
            "elapsed": outcome.elapsed,
            "request_id": outcome.request_id,
        }
        attempt = log.about("attempt")
        assert (attempt["level"], attempt["response_id"], attempt["attempts"]) == ("DEBUG", name, 1)

    async def test_one_that_was_not_is_a_warning_with_its_reason(
        self, server: Emulator, session: QuickSession, log: Lines
    ) -> None:
        server.faults += [Fault(status=403, body={"error": {"message": "a secret"}}) for _ in range(9)]
        await session.stop("resp_1")
        line = log.about("not_stopped")
        assert line["message"] == "resp_1 was not stopped (forbidden, PermissionDeniedError)"
        assert (line["level"], line["verdict"], line["error_type"]) == (
            "WARNING", "forbidden", "PermissionDeniedError",
        )  # fmt: skip

    async def test_one_without_an_error_has_its_verdict_as_the_reason(
        self, server: Emulator, session: QuickSession, log: Lines
    ) -> None:
        server.faults += [Fault(status=200, body={"id": "resp_1", "status": "in_progress"}) for _ in range(50)]
        await session.stop("resp_1", deadline=5)
        assert log.about("not_stopped")["message"] == "resp_1 was not stopped (still_running)"

    async def test_a_dry_run_is_information(self, session: QuickSession, create, log: Lines) -> None:
        await session.stop(create(), dry_run=True)
        line = log.about("stopped")
        assert (line["level"], line["verdict"]) == ("INFO", "still_running")

    async def test_an_id_that_cannot_be_sent_is_a_warning(self, session: QuickSession, log: Lines) -> None:
        assert len([outcome async for outcome in session.stop_many([".."])]) == 1
        assert log.about("not_stopped")["error_type"] == "InvalidResponseIdError"

    async def test_the_warning_of_a_guard_is_printed_where_nothing_is_configured(
        self, server: Emulator, session: QuickSession, create, log: Lines
    ) -> None:
        server.faults += [Fault(status=403) for _ in range(9)]
        async with session.guard(create(), on_exit="stop"):
            pass
        assert log.about("not_stopped")["logger"] == "openai_cancel"

    async def test_outcomes_that_a_caller_gets_are_not_printed_without_a_configuration(
        self, session: QuickSession, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.setattr(logging.getLogger(), "handlers", [])
        await session.stop("resp_none")
        assert capsys.readouterr().err == ""


class TestFailures:
    async def test_a_guard_that_has_no_outcome(self, server: Emulator, log: Lines) -> None:
        def key() -> str:
            raise LookupError("a secret")

        async with (
            AsyncSession(api_key=key, base_url=server.base_url) as session,
            session.guard("resp_1", on_exit="stop"),
        ):
            pass
        line = log.about("stop_failed")
        assert (line["level"], line["response_id"], line["error_type"]) == ("WARNING", "resp_1", "LookupError")

    async def test_a_wait_that_is_refused(self, server: Emulator, session: QuickSession, create, log: Lines) -> None:
        name = create()
        server.faults += [Fault(on="retrieve", status=403) for _ in range(3)]
        with pytest.raises(openai_cancel.PermissionDeniedError):
            await session.wait(name)
        line = log.about("wait_failed")
        assert (line["response_id"], line["verdict"], line["error_type"]) == (
            name, "cancelled", "PermissionDeniedError",
        )  # fmt: skip

    async def test_a_hook_that_raises(self, server: Emulator, create, log: Lines) -> None:
        def hook(_: Outcome) -> None:
            raise LookupError("a secret")

        async with AsyncSession(api_key=KEY, base_url=server.base_url, on_outcome=hook) as session:
            await session.stop(create())
        line = log.about("on_outcome_failed")
        assert (line["verdict"], line["error_type"]) == ("cancelled", "LookupError")

    async def test_a_database_that_fails_and_works_again(
        self, server: Emulator, create, ledger: Ledger, url: str, log: Lines
    ) -> None:
        async with open_session(server, ledger) as session:
            async with without_table(url), session.guard(create()):
                pass
            assert log.about("ledger_failed")["error_type"] == "LedgerError"
            async with session.guard(create()):
                pass
        assert log.about("ledger_recovered")["message"] == "the ledger works again"

    async def test_a_sweep_says_how_many_it_has_claimed(
        self, server: Emulator, create, ledger: Ledger, log: Lines
    ) -> None:
        async with open_session(server, ledger) as session:
            await ledger.track_many([create(), create()], session=session, ttl=0.001)
            await asyncio.sleep(0.01)
            assert len([outcome async for outcome in ledger.sweep(session)]) == 2
        line = log.about("sweep_claimed")
        assert (line["logger"], line["affected"], line["message"]) == (
            "openai_cancel.ledger", 2, "claimed 2 responses",
        )  # fmt: skip
