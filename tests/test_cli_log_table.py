"""The command `report`: tables of logs."""

import csv
import json
import os
import sqlite3
import sys
from pathlib import Path

import pytest
from markdown_it import MarkdownIt  # of rich

from openai_cancel.cli import log_lines
from openai_cancel.cli.app import run
from openai_cancel.cli.last_lines import LastLines

AT = "2026-11-26T03:12:05.000+00:00"
ERROR = {"type": "NotFoundError", "message": "404: no | such <id>", "status": 404, "code": None, "request_id": "r"}
LINES = [
    {"id": "resp_1", "verdict": "still_running", "stopped": False, "error": None, "at": AT, "input": {"team": "a"}},
    {"id": "resp_2", "verdict": "already_finished", "stopped": True, "status": "failed", "error": None, "at": AT},
    {"id": "resp_3", "verdict": "not_found", "stopped": False, "status": None, "error": ERROR, "at": AT,
     "input": {"team": "b", "n": 7}},
    {"id": "resp_1", "verdict": "cancelled", "stopped": True, "status": "cancelled", "error": None,
     "at": AT.replace("03:", "04:"), "input": {"team": "a"}},
    {"file": "jobs.csv", "line": 3, "problem": "has no id", "at": AT, "input": {"team": "b"}},
    {"file": "jobs.csv", "line": 3, "problem": "has no id", "at": AT, "input": {"team": "b"}},
    {"summary": "of something else"},
    ["no object"],
]  # fmt: skip


@pytest.fixture
def log(tmp_path: Path) -> str:
    path = tmp_path / "log"
    path.write_text("".join(json.dumps(line) + "\n" for line in LINES) + '\n{"id": "resp_4", "stop')
    return str(path)


@pytest.fixture
def report(capsys: pytest.CaptureFixture[str]):
    def report(*arguments: str) -> tuple[int, list[str], str]:
        status = run(["report", *arguments])
        out, err = capsys.readouterr()
        return status, out.splitlines(), err

    return report


def test_the_last_line_about_each_response_counts(report, log: str) -> None:
    assert report(log) == (
        0,
        [
            "verdict           error              responses",
            "already finished                             1",
            "bad line          has no id                  1",
            "cancelled                                    1",
            "not found         NotFoundError 404          1",
            "in all                                       4",
            "",
            f"From {AT} to {AT.replace('03:', '04:')}.",
        ],
        "openai-cancel: 1 line is left out, because it is not JSON\n",
    )


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--fromat", "csv"], "--fromat is neither an option nor a log."),
        (["--by", "verdict", "another.log"], "Unexpected arguments: another.log. Put all logs before the options."),
    ],
)
def test_an_option_that_does_not_exist_is_no_log(report, log: str, arguments: list[str], words: str) -> None:
    assert report(log, *arguments) == (2, [], f"openai-cancel: {words}\n")


def test_columns_of_the_input_can_be_counted_by(report, log: str) -> None:
    assert report(log, "--by", "team", "--by", "verdict")[1][:-2] == [
        "team    verdict           responses",
        "        already finished          1",
        "a       cancelled                 1",
        "b       bad line                  1",
        "b       not found                 1",
        "in all                            4",
    ]
    assert report(log, "--by", "input.n")[1][1:3] == ["                 3", "7                1"]


def test_what_failed_can_be_listed_in_markdown(report, log: str) -> None:
    status, out, _ = report(log, "--failed", "--by", "id", "--by", "message", "--format", "markdown")
    assert (status, out[:-2]) == (
        0,
        [
            "| id | message | responses |",
            "|---|---|---:|",
            "|  | has no id | 1 |",
            r"| resp_3 | 404: no \| such &lt;id> | 1 |",
            "| in all |  | 2 |",
        ],
    )


@pytest.mark.parametrize(
    "words",
    [
        "![image](http://host/x.png) and [link](javascript:x)",
        "*a* **b** _c_ __d__ a_b a__b_ _x __e",
        "`code` ``more|`` ~~gone~~ ~x~",
        "<b> &lt; &amp; & &#65; <http://host>",
        r"back\\slash \* \| |",
    ],
)
def test_no_text_is_markup_in_markdown(report, tmp_path: Path, words: str) -> None:
    log = tmp_path / "log"
    log.write_text(json.dumps({"id": "resp_1", "stopped": False, "error": {"message": words}}))
    _, out, _ = report(str(log), "--by", "message", "--format", "markdown")
    tokens = MarkdownIt("commonmark").enable(["table", "strikethrough"]).parse("\n".join(out))
    cells = [token for token in tokens if token.type == "inline"]
    assert {child.type for cell in cells for child in cell.children} <= {"text", "text_special"}
    assert "".join(child.content for child in cells[2].children) == words


def test_a_table_of_csv_has_a_header_and_no_total_and_no_formula(report, tmp_path: Path) -> None:
    log = tmp_path / "log"
    errors = ["=1+1", 'two, "quoted"', "two\nlines", "plain"]
    documents = [{"id": f"r{n}", "stopped": False, "error": {"message": words}} for n, words in enumerate(errors)]
    log.write_text("".join(f"{json.dumps(document)}\n" for document in documents))
    status, out, err = report(str(log), "--by", "verdict", "--by", "message", "--format", "csv")
    assert (status, err) == (0, "")
    assert [*csv.reader(out)] == [
        ["verdict", "message", "responses"],
        ["unknown", "'=1+1", "1"],
        ["unknown", "plain", "1"],
        ["unknown", "two lines", "1"],
        ["unknown", 'two, "quoted"', "1"],
    ]


@pytest.mark.parametrize(
    ("document", "verdict"),
    [
        ({"stopped": True, "status": "completed", "response": {}}, "completed"),
        ({"stopped": True, "status": "cancelled", "outcome": {"verdict": "cancelled"}}, "cancelled"),
        ({"stopped": False, "status": "queued", "error": {"type": "WaitTimeoutError"}}, "unknown"),
    ],
)
def test_a_wait_has_the_verdict_of_its_stop_or_its_last_status(report, tmp_path: Path, document, verdict: str) -> None:
    log = tmp_path / "log"
    log.write_text(json.dumps({"id": "resp_1", **document}))
    assert report(str(log), "--by", "verdict", "--format", "csv")[1] == ["verdict,responses", f"{verdict},1"]


def test_wide_characters_take_two_columns_and_none_controls_the_terminal(report, tmp_path: Path) -> None:
    log = tmp_path / "log"
    names = ["日本", "\x1b[31m", "a_b"]
    log.write_text("".join(json.dumps({"id": f"r{n}", "input": {"x": name}}) + "\n" for n, name in enumerate(names)))
    assert report(str(log), "--by", "x", "--by", "verdict")[1] == [
        "x         verdict  responses",
        r"\x1b[31m  unknown          1",
        "a_b       unknown          1",
        "日本      unknown          1",
        "in all                     3",
    ]


def test_an_error_names_only_the_first_of_many_columns(report, tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text("".join(json.dumps({"id": "resp_1", "input": {f"x{n}": 1}}) + "\n" for n in range(60)))
    status, _, err = report(str(log), "--by", "y")
    assert (status, "x49." in err) == (2, True)


def test_without_times_there_is_no_sentence_below_the_table(report, tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text(json.dumps({"id": "resp_1"}))
    assert report(str(log), "--by", "id", "--format", "markdown")[1][-1] == "| in all | 1 |"


def test_several_logs_are_one_and_standard_input_may_be_among_them(report, tmp_path: Path, log: str) -> None:
    more = tmp_path / "more"
    more.write_text(json.dumps({"id": "resp_3", "verdict": "cancelled", "stopped": True}))
    kept = os.dup(0)
    try:
        with more.open() as opened:
            os.dup2(opened.fileno(), 0)
            assert report(log, "-", "--by", "verdict", "--format", "csv")[1] == [
                "verdict,responses", "already_finished,1", "bad_line,1", "cancelled,2"
            ]  # fmt: skip
    finally:
        os.dup2(kept, 0)
        os.close(kept)


DEEP = json.loads("[" * 300 + "]" * 300)


@pytest.mark.parametrize(
    ("content", "value"),
    [
        (b"\xef\xbb\xbf" + b'{"id": "resp_1", "input": {"job": 1}}\n', "1"),
        ('{"id": "resp_1", "input": {"job": 2}}\r\n'.encode("utf-16"), "2"),
        (b'{"id": "resp_1", "error": {"message": "\\ud800"}, "input": {"job": "\\udfff!"}}\n', "\ufffd\ufffd\ufffd!"),
        (b'{"id": "resp_1", "input": {"job": 123456789012345678901234567890}}\n', "123456789012345678901234567890"),
        (json.dumps({"id": "resp_1", "input": {"job": DEEP}}).encode(), json.dumps(DEEP)),
    ],
    ids=["a byte order mark", "UTF-16", "half of a surrogate pair", "a long integer", "a deep value"],
)
def test_whatever_a_log_may_contain_is_counted(report, tmp_path: Path, content: bytes, value: str) -> None:
    log = tmp_path / "log"
    log.write_bytes(content)
    status, out, err = report(str(log), "--by", "job", "--format", "csv")
    assert (status, out, err) == (0, ["job,responses", f"{value},1"], "")


def test_lines_that_are_too_long_or_not_text_are_left_out(report, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(log_lines, "LINE_LIMIT", 50)
    log = tmp_path / "log"
    good = json.dumps({"id": "resp_1"}).encode()
    log.write_bytes(b'{"id": "' + b"x" * 140 + b'"}\n' + good + b"\n\n\xff\n" + b"[" * 2000 + b"\n7\n" + b"z" * 99)
    status, out, err = report(str(log), "--by", "id", "--format", "csv")
    assert (status, out) == (0, ["id,responses", "resp_1,1"])
    assert err == "openai-cancel: 4 lines are left out, because they are not JSON\n"


def test_a_temporary_file_that_cannot_be_written_is_one_line(report, log: str, monkeypatch) -> None:
    def full(*_: object) -> None:
        raise sqlite3.OperationalError("database or disk is full")

    monkeypatch.setattr(LastLines, "put", full)
    assert report(log) == (1, [], "openai-cancel: cannot write: a temporary file: database or disk is full\n")


def test_standard_input_that_is_closed_is_said_so(report, log: str, monkeypatch) -> None:
    monkeypatch.setattr(sys, "stdin", None)
    assert report(log, "-") == (2, [], "openai-cancel: standard input: closed\n")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (
            ["LOG", "--by", "taem"],
            "--by taem: no line has such a column. There are: verdict, status, error, message, id, ",
        ),
        (["/none"], "/none: No such file or directory"),
        (["/"], "/: Is a directory"),
        (["/proc/self/mem"], "/proc/self/mem: Input/output error"),
        (["EMPTY"], "There is no line about a response: pass a file that --log has written."),
        ([], "LOGS"),
    ],
)
def test_what_cannot_work_is_one_line(report, tmp_path: Path, log: str, arguments: list[str], words: str) -> None:
    empty = tmp_path / "empty"
    empty.touch()
    paths = {"LOG": log, "EMPTY": str(empty)}
    status, out, err = report(*[paths.get(argument, argument) for argument in arguments])
    assert (status, out, err.count("\n")) == (2, [], 1)
    assert words in err
