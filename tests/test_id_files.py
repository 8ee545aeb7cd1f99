"""Files as other programs write them: arrays of JSON, tables of Excel, long fields, byte order marks."""

import asyncio
import codecs
import csv
import io
import json
import os
import sys
import tracemalloc
from collections.abc import Callable
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest
from conftest import KEY
from hypothesis import given
from hypothesis import strategies as st
from processes import StartProcess
from terminal import COMMAND

from openai_cancel.cli import json_values
from openai_cancel.cli.ids import BadLine, IdReader, Row, Source
from openai_cancel.emulator import Emulator, Fault


def read(text: str) -> list[str | BadLine]:
    reader = IdReader()
    found = [*(item for line in text.split("\n") for item in reader.read(line)), *reader.end()]
    return [item.response_id if isinstance(item, Row) else item for item in found]


def numbers(text: str) -> list[str | int]:
    """Return the ids, and the numbers of the bad lines."""
    return [item.number if isinstance(item, BadLine) else item for item in read(text)]


RESPONSES = [{"id": "resp_1", "output": [{"id": "x", "text": 'a ] "b" \\'}]}, "resp_2", {"response_id": "resp_3"}]


class TestArray:
    @pytest.mark.parametrize("indent", [None, 0, 2, "\t"])
    @pytest.mark.parametrize("end", ["\n", "\r\n"])
    def test_an_array_is_read_however_it_is_printed(self, indent: int | str | None, end: str) -> None:
        text = json.dumps(RESPONSES, indent=indent).replace("\n", end)
        assert read(text) == ["resp_1", "resp_2", "resp_3"]
        assert read(f"# exported\n\n  {text}{end}") == ["resp_1", "resp_2", "resp_3"]

    def test_an_array_may_be_empty_and_end_with_a_comma(self) -> None:
        assert read("[]") == read("[\n]\n") == read("[\n\n  \n]") == []
        assert read('["resp_1",\n"resp_2",\n]\n') == ["resp_1", "resp_2"]

    def test_several_arrays_and_indented_objects_may_follow_each_other(self) -> None:
        objects = "\n".join(json.dumps({"id": f"resp_{number}", "tools": [{}]}, indent=2) for number in range(3))
        assert read(f'{objects}\n["resp_3"]\n[\n"resp_4"\n]\nresp_5\n') == [f"resp_{number}" for number in range(6)]
        assert read('[\n"resp_1"\n] ["resp_2",\n"resp_3"]') == ["resp_1", "resp_2", "resp_3"]

    def test_a_bad_element_does_not_affect_other_elements(self) -> None:
        text = '[\n  17,\n  "resp_1",\n  {"name": 5},\n  ["resp_x"],\n  "a" "b",\n  }, nonsense,\n  "resp_2"\n]\n'
        assert numbers(text) == [2, "resp_1", 4, 5, 6, 7, 7, "resp_2"]

    def test_the_number_of_a_bad_element_is_that_of_the_line_where_it_begins(self) -> None:
        assert numbers('[\n\n{\n"name":\n1\n},\n\n  {\n"id": 5}\n]') == [3, 8]

    def test_an_array_that_does_not_end_is_a_bad_line(self) -> None:
        assert read('[\n"resp_1",\n') == ["resp_1", BadLine(1, "is not JSON")]
        assert numbers('resp_0\n[\n"resp_1",\n{"id":\n"resp_2"') == ["resp_0", "resp_1", 4, "resp_2"]

    def test_lines_after_a_string_that_is_not_closed_are_read_one_by_one(self) -> None:
        assert numbers('[\n"resp_1",\n"resp_\n"resp_2"\nresp_3\n') == ["resp_1", 3, "resp_2", "resp_3"]
        assert numbers('{\n"id": "resp_1\nresp_2\n') == [1, 2, "resp_2"]

    def test_anything_after_the_end_on_the_same_line_is_a_bad_line(self) -> None:
        assert numbers('["resp_1"] resp_2\nresp_3') == ["resp_1", 1, "resp_3"]

    def test_an_object_that_is_too_large_is_a_bad_line(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(json_values, "VALUE_LIMIT", 2000)
        long = json.dumps([{"id": "resp_1", "text": ["x"] * 30}], indent=0)
        assert numbers(f"{long}\n")[0] == 2
        assert "resp_1" not in numbers(f"{long}\n")

    @given(
        names=st.lists(st.text("abc/=+_[]{}\\,").map("a{}b".format), max_size=5),
        indent=st.sampled_from([None, 0, 1, 4]),
        more=st.recursive(
            st.text(max_size=5) | st.booleans(), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner)
        ),
        ascii_only=st.booleans(),
    )
    def test_every_array_that_json_writes_can_be_read(
        self, *, names: list[str], indent: int | None, more: Any, ascii_only: bool
    ) -> None:
        text = json.dumps([{"more": more, "id": name} for name in names], indent=indent, ensure_ascii=ascii_only)
        assert read(text) == names

    @pytest.mark.slow
    async def test_memory_does_not_grow_with_the_number_of_elements(self, tmp_path: Path) -> None:
        file = tmp_path / "ids.json"
        count = 50_000
        with file.open("w") as written:
            written.write("[\n")
            for number in range(count):
                written.write(f'  {{\n    "id": "resp_{number}",\n    "text": "{"x" * 100}"\n  }},\n')
            written.write('  "resp_last"\n]\n')
        tracemalloc.start()
        try:
            found = 0
            with Source([], [str(file)], complain=pytest.fail, skip=lambda _: False) as source:
                async with aclosing(source.read()) as names:
                    async for _ in names:
                        found += 1
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert found == count + 1
        assert peak < file.stat().st_size / 2


class TestTable:
    @pytest.mark.parametrize("line", ["sep=;", "SEP=;", '"sep=;"'])
    def test_the_line_with_which_excel_names_the_delimiter_is_understood(self, line: str) -> None:
        assert read(f"\n{line}\r\nid;said\r\nresp_1;a,b\r\n") == ["resp_1"]

    @pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
    def test_any_delimiter_can_be_named(self, delimiter: str) -> None:
        text = io.StringIO()
        csv.writer(text, delimiter=delimiter).writerows([("x", "id"), ("1", "resp_1"), (delimiter, "resp_2")])
        assert read(f"sep={delimiter}\n{text.getvalue()}") == ["resp_1", "resp_2"]

    def test_a_table_without_the_column_is_called_a_table(self) -> None:
        found = read("sep=|\nname|status\n")
        assert found == [BadLine(2, "looks like a table, but the first line has no column id or response_id")]

    def test_an_id_may_look_like_the_line_of_excel_later_on(self) -> None:
        assert read("resp_1\nsep=x\n") == ["resp_1", "sep=x"]

    def test_a_carriage_return_in_the_middle_of_the_first_line_makes_it_a_bad_line(self) -> None:
        assert numbers("a\rb,id\nresp_1\n") == [1, "resp_1"]

    def test_fields_may_be_longer_than_the_default_of_csv(self) -> None:
        long = "x" * 1_000_000
        assert read(f'id,said\nresp_1,{long}\nresp_2,"{long}\n{long}"\n') == ["resp_1", "resp_2"]
        assert read(f"{long},id\n1,resp_1\n") == ["resp_1"]

    def test_a_quote_that_is_never_closed_is_given_up_after_many_characters(self) -> None:
        long = "x" * 6_000_000
        assert numbers(f'id,said\nresp_1,"\n{long}\n{long}\n{long}\nresp_2,2\n')[0] == 2
        assert numbers(f'id,said\nresp_1,"\n{long}\n{long}\n{long}\nresp_2,2\n')[-1] == "resp_2"


ENCODINGS: dict[str, Callable[[str], bytes]] = {
    "a byte order mark": lambda text: text.encode("utf-8-sig"),
    "UTF-16 of PowerShell": lambda text: codecs.BOM_UTF16_LE + text.encode("utf-16-le"),
    "UTF-16, big end first": lambda text: codecs.BOM_UTF16_BE + text.encode("utf-16-be"),
}


@pytest.mark.parametrize("encode", ENCODINGS.values(), ids=ENCODINGS)
async def test_a_key_file_may_begin_with_a_byte_order_mark(
    server: Emulator, run: Any, create: Any, tmp_path: Path, encode: Callable[[str], bytes]
) -> None:
    file = tmp_path / "key"
    file.write_bytes(encode(f"{KEY}-of-a-file\r\n"))
    assert (await run("stop", create(), "--key-file", str(file)))[0] == 0
    assert server.received[0].headers["authorization"] == f"Bearer {KEY}-of-a-file"


@pytest.mark.parametrize("content", [b"\xff\xfes", b"\xff", b"\xef\xbb\xbf", b""])
async def test_a_key_file_without_a_key_is_refused(run: Any, tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "key"
    file.write_bytes(content)
    status, _, complaints = await run("stop", "resp_1", "--key-file", str(file))
    assert (status, "Cannot read the key" in complaints) == (3, True)


@pytest.mark.slow
@pytest.mark.parametrize("variable", ["FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"])
async def test_no_progress_is_drawn_into_a_file(
    server: Emulator, create: Any, tmp_path: Path, variable: str, start_process: StartProcess
) -> None:
    server.faults.append(Fault(delay=0.3))
    errors = tmp_path / "errors"
    environment = {**os.environ, "OPENAI_API_KEY": KEY, "OPENAI_BASE_URL": server.base_url, variable: "1"}
    with errors.open("w") as stderr:
        process = await start_process(
            COMMAND, "stop", create(), env=environment, stdout=asyncio.subprocess.PIPE, stderr=stderr
        )
        output, _ = await process.communicate()
    assert json.loads(output)["verdict"] == "cancelled"
    written = errors.read_text()
    assert "in all" in written
    assert "under way" not in written
    for control in ("\x1b[?25l", "\x1b[2K", "\x1b[1A", "\r"):
        assert control not in written


async def test_a_closed_standard_error_is_no_terminal(run: Any, create: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", None)
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert (await run("stop", create(), "--json"))[0] == 0
