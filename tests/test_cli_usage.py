"""What the command says about wrong arguments, and where arguments may stand."""

import pytest

from openai_cancel.emulator import Emulator


@pytest.mark.parametrize(
    "arguments", [["stop", "{}", "--no-json", "{}"], ["cancel", "{}", "--json", "{}"], ["stop", "{}", "--", "{}"]]
)
async def test_options_may_stand_between_ids(run, server: Emulator, create, arguments: list[str]) -> None:
    status, out, _ = await run(*(create() if argument == "{}" else argument for argument in arguments))
    assert status == 0
    assert len(server.responses) == 2
    assert all(name in out and work.cancelled for name, work in server.responses.items())


@pytest.mark.parametrize("option", ["--file", "-f", "--log", "--rerun-failed", "--key-file"])
async def test_a_variable_that_is_not_set_is_no_file(run, option: str) -> None:
    status, _, err = await run("stop", "resp_1", option, "")
    words = "the path of the file is empty, as if a variable was not set"
    assert (status, err) == (2, f"openai-cancel: Invalid value for {option}: {words}\n")


@pytest.mark.parametrize(
    ("option", "suggestion"),
    [
        ("--fiel", " Did you mean --file?"),
        ("--rerun-faild=log", " Did you mean --rerun-failed?"),
        ("--org=mine", " Did you mean --organization?"),
        ("--api", " Did you mean --api-version?"),
        ("--timeout", ""),
        ("--parallel", ""),
        ("--rate", ""),
        ("--co", ""),
        ("-x", ""),
    ],
)
async def test_an_option_is_suggested_only_if_it_is_alike(run, option: str, suggestion: str) -> None:
    status, _, err = await run("stop", "resp_1", option)
    assert (status, err) == (2, f"openai-cancel: Unknown option: {option}.{suggestion}\n")
