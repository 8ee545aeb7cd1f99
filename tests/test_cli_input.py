"""The input of a bulk run, as its report and its log show it: columns, bad lines, repeated ids, and what failed."""

import json
import re
from pathlib import Path

import pytest

from openai_cancel.cli import id_set
from openai_cancel.emulator import Emulator, Fault


def lines(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture(params=[0, 10_000])
def memory(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Room for ids in memory, or none."""
    monkeypatch.setattr(id_set, "IN_MEMORY", request.param)


@pytest.mark.usefixtures("memory")
async def test_a_response_that_occurs_again_is_stopped_and_counted_once(
    run, server: Emulator, create, tmp_path: Path
) -> None:
    names = [create() for _ in range(3)]
    file, log = tmp_path / "ids", tmp_path / "log"
    file.write_text("\n".join([*names, *names, names[0]]))
    status, out, err = await run("stop", names[0], "--file", str(file), "--log", str(log))
    assert (status, out.count("\n"), len(lines(log))) == (0, 3, 3)
    assert re.search(r"^cancelled +3\s+repeated +5\s+in all +3 ", err, re.MULTILINE)
    assert sum(request.method == "POST" for request in server.received) == 3
    status, _, err = await run("stop", "--file", str(file), "--log", str(log), "--resume")
    assert status == 0
    assert re.search(r"^repeated +4\s+stopped earlier +3\s+in all +0 ", err, re.MULTILINE)
    status, _, err = await run("wait", "--file", str(file))
    assert (status, re.search(r"^cancelled +3\s+repeated +4\s+in all +3 ", err, re.MULTILINE) is not None) == (0, True)


async def test_the_other_columns_and_the_bad_lines_go_into_the_log(run, create, tmp_path: Path) -> None:
    file, log = tmp_path / "jobs.csv", tmp_path / "log"
    first, second = create(), create(runs_for=0)
    file.write_text(f"job,id,team\n7,{first},search\n8,,ads\n9,{second},\n10,..,ads\n")
    status, out, err = await run("stop", "--file", str(file), "--log", str(log))
    assert status == 1
    found = {line.get("id", line.get("line")): line for line in lines(log)}
    assert found[first]["input"] == {"job": "7", "team": "search"}
    assert found[second]["input"] == {"job": "9"}
    assert {name: found[3][name] for name in ("file", "line", "problem", "input")} == {
        "file": str(file), "line": 3, "problem": "has no id", "input": {"job": "8", "team": "ads"}
    }  # fmt: skip
    assert found[5]["problem"] == "'..' cannot be a response id"
    assert {json.loads(line)["id"]: json.loads(line)["input"] for line in out.splitlines()} == {
        first: {"job": "7", "team": "search"}, second: {"job": "9"}
    }  # fmt: skip
    assert f"openai-cancel: {file}: 1 row has no id: line 3\n" in err
    assert re.search(r"bad lines +1\s+without an id +1\s", err)


async def test_a_line_without_other_columns_has_no_field_for_them(run, tmp_path: Path) -> None:
    file, log = tmp_path / "ids", tmp_path / "log"
    file.write_text("resp 1\n")
    await run("stop", "--file", str(file), "--log", str(log))
    assert [*lines(log)[0]] == ["file", "line", "problem", "at"]


async def test_without_json_problems_and_totals_go_into_the_pipe(run, create, tmp_path: Path) -> None:
    file = tmp_path / "ids"
    file.write_text(f"{create()}\nresp_none\n")
    status, out, err = await run("stop", "--file", str(file), "--no-json")
    assert (status, err) == (1, "")
    assert out.startswith("resp_none  not found: 404: ")
    assert re.search(r"^in all +2 ", out, re.MULTILINE)


async def test_a_dry_run_that_is_quiet_says_what_would_be_stopped(run, create, tmp_path: Path) -> None:
    file, name = tmp_path / "ids", create()
    file.write_text(f"{name}\n{create(runs_for=0)}\n")
    status, out, err = await run("stop", "--file", str(file), "--dry-run", "--quiet")
    assert (status, out, err) == (1, "", f"openai-cancel: {name} would be stopped (in_progress)\n")
    status, out, err = await run("status", "--file", str(file), "--quiet")
    assert (status, out, err) == (1, "", f"openai-cancel: {name} still running (in_progress)\n")


class TestRerunFailed:
    async def test_what_a_log_shows_as_not_stopped_is_stopped_once_more(
        self, run, server: Emulator, create, tmp_path: Path
    ) -> None:
        file, log = tmp_path / "jobs.csv", tmp_path / "log"
        names = [create() for _ in range(4)]
        file.write_text("id,job\n" + "".join(f"{name},{number}\n" for number, name in enumerate(names)) + ",9\n")
        server.faults += [Fault(status=402)] * 4
        status, _, err = await run("stop", "--file", str(file), "--log", str(log), "--concurrency", "2")
        assert (status, re.search(r"unknown +2\s", err) is not None) == (1, True)
        server.received.clear()
        status, out, err = await run("stop", "--rerun-failed", str(log))
        assert (status, len(out.splitlines())) == (0, 2)
        assert re.search(r"^cancelled +2\s+in all +2 ", err, re.MULTILINE)
        last = {line["id"]: line for line in lines(log) if "id" in line}
        assert {name: (last[name]["stopped"], last[name]["input"]) for name in names} == {
            name: (True, {"job": f"{number}"}) for number, name in enumerate(names)
        }
        assert len(server.received) == 2
        status, out, err = await run("stop", "--rerun-failed", str(log))
        assert (status, out) == (0, "")

    async def test_no_response_is_lost_that_the_log_has(self, run, create, tmp_path: Path) -> None:
        log, names = tmp_path / "log", [create(), create()]
        error = {"message": "\ud800"}  # as a server may say
        documents = [{"id": name, "stopped": False, "error": error, "input": {"job": 2**80}} for name in names]
        text = "".join(json.dumps(document) + "\n" for document in documents) + '{"id": "resp_3", "stop'
        log.write_bytes(b"\xef\xbb\xbf" + text.encode())
        status, out, err = await run("stop", "--rerun-failed", str(log))
        assert (status, [json.loads(line)["input"] for line in out.splitlines()]) == (0, [{"job": 2**80}] * 2)
        assert "1 line is left out, because it is not JSON" in err

    async def test_an_id_that_cannot_be_sent_is_wrong_usage(self, run, tmp_path: Path) -> None:
        log = tmp_path / "log"
        log.write_text('{"id": "..", "stopped": false}\n')
        status, out, _ = await run("stop", "--rerun-failed", str(log))
        assert (status, json.loads(out)["error"]["type"]) == (2, "InvalidResponseIdError")

    async def test_there_may_be_another_log(self, run, create, tmp_path: Path) -> None:
        plan, log, name = tmp_path / "plan", tmp_path / "log", create()
        assert (await run("stop", name, "--dry-run", "--log", str(plan)))[0] == 1
        before = plan.read_text()
        assert (await run("stop", "--rerun-failed", str(plan), "--log", str(log)))[0] == 0
        assert ([line["id"] for line in lines(log)], plan.read_text()) == ([name], before)

    async def test_wait_takes_it_too(self, run, create, tmp_path: Path) -> None:
        log, name = tmp_path / "log", create(runs_for=0)
        log.write_text(json.dumps({"id": name, "stopped": False}))
        status, out, _ = await run("wait", "--rerun-failed", str(log), "--no-json")
        assert (status, "completed  1" in out) == (0, True)

    async def test_it_ends_after_a_key_that_the_server_rejects(self, run, server: Emulator, tmp_path: Path) -> None:
        log = tmp_path / "log"
        log.write_text("".join(json.dumps({"id": f"resp_{number}", "stopped": False}) + "\n" for number in range(9)))
        server.faults += [Fault(status=401)] * 20
        status, out, _ = await run("stop", "--rerun-failed", str(log), "--concurrency", "1")
        assert (status, len(out.splitlines()) < 5) == (3, True)

    @pytest.mark.parametrize(
        ("arguments", "words"),
        [
            (["resp_1", "--rerun-failed", "log"], "takes the ids from a log: leave out ids, --file and --resume"),
            (["--file", "-", "--rerun-failed", "log"], "takes the ids from a log"),
            (["--rerun-failed", "log", "--resume"], "takes the ids from a log"),
            (["--rerun-failed", "log", "--running", "--all"], "leave out ids and --file, or --rerun-failed"),
            (["--rerun-failed", "none"], "none: No such file or directory"),
            (["--rerun-failed", "log"], "log is not the --log of a run: it has no line about a response"),
        ],
    )
    async def test_what_cannot_work_is_refused(
        self, run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], words: str
    ) -> None:
        monkeypatch.chdir(tmp_path)
        (tmp_path / "log").write_text('[]\n{"id": 7}\n{"id": "resp_1"}\nnonsense\n')
        status, out, err = await run("stop", *arguments)
        assert (status, out, err.count("\n")) == (2, "", 1)
        assert words in err
        assert not (tmp_path / "none").exists()


@pytest.mark.parametrize("command", ["stop", "status", "wait", "ledger add --ttl 1h"])
async def test_a_file_that_is_passed_as_an_id_is_refused(
    run, server: Emulator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "jobs.csv").write_text("id\nresp_1\n")
    status, out, err = await run(*command.split(), "jobs.csv")
    assert (status, out, server.received) == (2, "", [])
    assert err == (
        "openai-cancel: jobs.csv is a file: for the ids in it, use --file jobs.csv. For a response with this id, use "
        "standard input.\n"
    )


async def test_cancel_says_of_a_file_that_stop_reads_files(run, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "jobs.csv").write_text("id\nresp_1\n")
    status, _, err = await run("cancel", "jobs.csv")
    assert (
        status,
        "openai-cancel: jobs.csv is a file: for the ids in it, use openai-cancel stop --file jobs.csv." in err,
    ) == (2, True)
