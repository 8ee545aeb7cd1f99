"""The ids of a run: the files that hold them, and how they are read."""

import asyncio
import codecs
import csv
import gzip
import json
import os
from collections.abc import Callable
from contextlib import aclosing
from pathlib import Path

import pytest
from conftest import until
from hypothesis import given
from hypothesis import strategies as st

from openai_cancel.cli import ids
from openai_cancel.cli.ids import COLUMN_LIMIT, LINE_LIMIT, BadLine, IdReader, Row, Source


def rows(text: str) -> list[Row | BadLine]:
    reader = IdReader()
    lines = text.split("\n")
    found = [item for line in (lines if lines[-1] else lines[:-1]) for item in reader.read(line)]
    return [*found, *reader.end()]


def read(text: str) -> list[str | BadLine]:
    """Return the ids without the other columns, and the bad lines."""
    return [item.response_id if isinstance(item, Row) else item for item in rows(text)]


def numbers(text: str) -> list[str | int]:
    """Return the ids, and the numbers of the bad lines."""
    return [item.number if isinstance(item, BadLine) else item for item in read(text)]


class TestPlain:
    def test_each_line_is_an_id(self) -> None:
        assert read("resp_1\nresp_2\nresp_2\n") == ["resp_1", "resp_2", "resp_2"]

    def test_blank_lines_and_comments_are_skipped(self) -> None:
        assert read("# a comment\r\n\r\n  resp_1 \r\n\t\n#\nresp_2 # why\nresp#3\n") == ["resp_1", "resp_2", "resp#3"]

    def test_an_id_may_contain_almost_any_character(self) -> None:
        assert read("a+b/c=\nresponse/1?x\n") == ["a+b/c=", "response/1?x"]

    @pytest.mark.parametrize(
        ("line", "words"),
        [
            ("resp_1 resp_2", "contains a space"),
            ("resp_1\u00a0resp_2", "contains a space"),
            ("resp_1\rresp_2", "contains a space"),
            ("resp_1,running", "the first line has no column id or response_id"),
            ("resp_1;running", "looks like a table"),
            ("resp_1|running", "looks like a table"),
            ('"resp_1","running"', "looks like a table"),
            ("'resp_1'", "cannot be a response id"),
            ("“resp_1”", r"'\u201cresp_1\u201d' cannot be a response id"),
            ("('resp_1')", "cannot be a response id"),
            ("resp_1\u200b", r"'resp_1\u200b' cannot be a response id"),
            ("https://platform.openai.com/logs/resp_1", "cannot be a response id"),
            ("┌──────┐", "cannot be a response id"),
            ('{"id": "resp_1,"}', "'resp_1,' cannot be a response id"),
            ("..", "'..' cannot be a response id"),
            ("resp\x00", r"'resp\x00' cannot"),
            ("resp\ufffd", "cannot be a response id"),
            ("r" * 5000, "cannot be a response id"),
            ("," * 200_000, "looks like a table"),
            ("{", "is not JSON"),
            ("[" * 100_000, "is not JSON"),
            ('[["resp_1"]]', "is a list inside a list; write one object or one id per line"),
            ('{"name": "resp_1"}', "has no field id or response_id"),
            ('{"id": 17}', "17 cannot be a response id"),
            ('{"id": null, "name": 1}', "has no id"),
            ('{"id": ""}', "has no id"),
        ],
    )
    def test_a_bad_line_does_not_affect_other_lines(self, line: str, words: str) -> None:
        before, bad, after = read(f"resp_1\n{line}\nresp_2\n")
        assert (before, after) == ("resp_1", "resp_2")
        assert isinstance(bad, BadLine)
        assert bad.number == 2
        assert words in bad.problem
        assert numbers(f"{line}\nresp_2\n") == [1, "resp_2"]


class TestJson:
    def test_lines_of_json_and_plain_ids_can_be_mixed(self) -> None:
        assert read('{"id": "resp_1", "x": 1}\n"resp_2"\nresp_3\n') == ["resp_1", "resp_2", "resp_3"]

    @pytest.mark.parametrize("indent", [None, 2])
    def test_the_list_of_a_server_has_its_ids(self, indent: int | None) -> None:
        listed = [{"id": "resp_1", "status": "queued"}, {"id": "resp_2"}, {"name": "x"}]
        text = json.dumps({"object": "list", "data": listed, "has_more": False}, indent=indent)
        bad = BadLine(1, "has no field id or response_id", {"name": "x"})
        assert rows(text) == [Row("resp_1", {"status": "queued"}), Row("resp_2", {}), bad]
        assert numbers('{"object": "list", "data": {}}') == [1]

    @pytest.mark.parametrize("name", ["response_id", "responseId", "ResponseID", "Response ID", "response-id"])
    def test_response_id_is_preferred_to_id_in_any_spelling(self, name: str) -> None:
        assert read(f'{{"id": "job-7", "{name}": "resp_1"}}\n{{"ID": "resp_2"}}') == ["resp_1", "resp_2"]
        assert read(f"ID,{name}\n7,resp_1") == ["resp_1"]
        assert read(f"{name}\nresp_1") == ["resp_1"]

    def test_the_output_of_the_command_can_be_its_input(self) -> None:
        assert read('{"id": "resp_1", "verdict": "unknown", "stopped": false}') == ["resp_1"]


class TestColumns:
    def test_the_other_columns_of_a_table_come_with_the_id(self) -> None:
        table = "job,response_id, Team ,\n7,resp_1,search,x\n8,,ads,\n9,resp_3,,\n10,resp_4\n"
        assert rows(table) == [
            Row("resp_1", {"job": "7", "Team": "search"}),
            BadLine(3, "has no id", {"job": "8", "Team": "ads"}, is_blank=True),
            Row("resp_3", {"job": "9"}),
            Row("resp_4", {"job": "10"}),
        ]

    def test_the_other_fields_of_a_json_object_come_with_the_id(self) -> None:
        lines = '{"id": "resp_1", "job": 7, "metadata": {"team": "search"}}\n{"id": null, "job": 8}\n{"job": 9}'
        assert rows(lines) == [
            Row("resp_1", {"job": 7, "metadata": {"team": "search"}}),
            BadLine(2, "has no id", {"job": 8}, is_blank=True),
            BadLine(3, "has no field id or response_id", {"job": 9}),
        ]

    def test_long_text_is_cut_and_a_long_json_value_left_out(self) -> None:
        long = "x" * (COLUMN_LIMIT + 1)
        assert rows(f"id,text\nresp_1,{long}") == [Row("resp_1", {"text": long[:-1]})]
        document = json.dumps({"id": "resp_1", "text": long, "list": [long], "short": [1]})
        assert rows(document) == [Row("resp_1", {"text": long[:-1], "short": [1]})]

    @pytest.mark.parametrize("id", ["", " ", "NULL", "None", "nan", r"\N"])
    def test_an_id_that_nobody_has_written_is_blank(self, id: str) -> None:  # noqa: A002
        found = [*rows('{"id": null}'), *rows(f"id,x\n{id},1"), *(rows(id) if id.strip() else [])]
        assert all(isinstance(bad, BadLine) and bad.is_blank and bad.problem == "has no id" for bad in found)


class TestTable:
    @pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
    @pytest.mark.parametrize("name", ["id", "response_id", " Response_ID ", '"id"'])
    def test_the_column_of_the_ids_is_found(self, delimiter: str, name: str) -> None:
        rows = [("", name, "status"), ("1", "resp_1", "queued"), ("2", ' "resp_2"', "x"), ("3", "resp_3", "y")]
        table = "\r\n".join(delimiter.join(row) for row in rows).replace(' "', '"')
        assert read(f"# export\n\n{table}\n") == ["resp_1", "resp_2", "resp_3"]

    @pytest.mark.parametrize("end", ["\n", "\r\n"])
    def test_titles_may_contain_line_breaks(self, end: str) -> None:
        for table in ('"Job\nname",id,"the\n# ""last""\n\n note "\nx,resp_1,y\n', 'id,"Job\nname"\nresp_1,x\n'):
            (row,) = rows(table.replace("\n", end))
            assert row.response_id == "resp_1"
            assert row.columns["Job name"] == "x"
        assert rows('"a\nb";id\nx;resp_1') == [Row("resp_1", {"a b": "x"})]
        assert read('"a\nb",c\nresp_1\nresp_2') == [
            BadLine(1, "is not JSON"),
            BadLine(2, "looks like a table, but the first line has no column id or response_id"),
            "resp_1",
            "resp_2",
        ]

    def test_a_quote_in_the_header_that_is_never_closed_loses_no_line(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(ids, "RECORD_LIMIT", 3)
        for count in (1, 2, 5):
            names = [f"resp_{number}" for number in range(count)]
            assert read("\n".join(['id,"x', *names])) == names
            assert numbers("\n".join(['"x', *names])) == [1, *names]

    def test_a_quote_inside_of_a_title_is_no_line_break(self) -> None:
        assert read('id,5" disks\nresp_1,3"\nresp_2,4\n') == ["resp_1", "resp_2"]

    @pytest.mark.parametrize(
        "table",
        [
            "id|team\nresp_1|x\nresp_2|y\n(2 rows)\n",  # psql -A, sqlite3
            " id     | team \n--------+------\n resp_1 | x\n resp_2 | y\n(2 rows)\n\n",  # psql
            "+---+---+\n| id | team |\n+---+---+\n| resp_1 | x |\n| resp_2 | y |\n+---+---+\n2 rows in set (0.0 sec)\n",
            "| id | team |\n|:---|---:|\n| resp_1 | x |\n| resp_2 | y |\n",  # Markdown
        ],
    )
    def test_tables_of_databases_can_be_read(self, table: str) -> None:
        assert rows(table) == [Row("resp_1", {"team": "x"}), Row("resp_2", {"team": "y"})]

    @pytest.mark.parametrize("table", ["   id\n--------\n resp_1\n(1 row)\n", "id    \n------\nresp_1\n"])
    def test_lines_that_are_drawn_are_no_ids(self, table: str) -> None:
        assert read(table) == ["resp_1"]

    @pytest.mark.parametrize("mark", ["", "\ufeff"])
    def test_files_may_have_been_put_together(self, mark: str) -> None:
        assert rows(f"id,team\nresp_1,x\n{mark}id,job\nresp_2,7\n") == [
            Row("resp_1", {"team": "x"}), Row("resp_2", {"job": "7"})
        ]  # fmt: skip
        assert read(f'resp_1\n{mark}resp_2\n{mark}{{"id": "resp_3"}}\n') == ["resp_1", "resp_2", "resp_3"]

    def test_a_table_may_have_no_records_or_one_column(self) -> None:
        assert read("id\n") == []
        assert read("id\nresp_1\n") == ["resp_1"]

    def test_a_field_may_contain_line_breaks(self) -> None:
        assert read('id,said\nresp_1,"one\ntwo, ""three""\n\n# four"\nresp_2,x\n') == ["resp_1", "resp_2"]

    def test_comments_and_blank_lines_in_a_table_are_skipped(self) -> None:
        assert read("id,x\n# none\n\nresp_1,1\n,\n ,\n") == ["resp_1"]  # Excel exports empty rows

    def test_a_record_with_too_few_columns_is_a_bad_line(self) -> None:
        assert read("x,id\nresp_1\n1,resp_2\n") == [
            BadLine(2, "has 1 columns; the id should be in column 2"),
            "resp_2",
        ]

    def test_a_record_without_an_id_is_a_bad_line(self) -> None:
        assert numbers("id,x\n,1\nresp_2,2\n") == [2, "resp_2"]

    def test_a_quote_that_is_never_closed_affects_only_its_line(self) -> None:
        found = read('id,x\nresp_1,"oh\nresp_2,2\nresp_3,3\n')
        assert found == [BadLine(2, "is not a record of a table: a quote is not closed"), "resp_2", "resp_3"]

    def test_misplaced_quotes_affect_only_their_lines(self) -> None:
        assert numbers('id,x\nresp_1,"oh\nresp_2,"no\nresp_3,3\n') == [2, 3, "resp_3"]
        assert numbers('id,x\nresp_1,"oh"no\nresp_2,2\n') == [2, "resp_2"]

    def test_a_record_with_too_many_lines_is_a_bad_line(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(ids, "RECORD_LIMIT", 3)
        reader = IdReader()
        found = [item for line in ["id,x", 'a,"', "b,1", "c,2", "d,3"] for item in reader.read(line)]
        assert [item.number if isinstance(item, BadLine) else item.response_id for item in found] == [2, "b", "c", "d"]

    def test_a_field_that_is_too_long_is_a_bad_line(self) -> None:
        assert numbers(f"id,x\nresp_1,{'x' * LINE_LIMIT}x\nresp_2,2\n") == [2, "resp_2"]

    @given(
        st.lists(st.tuples(st.text("abc/=+_").map("a".__add__), st.text('a,;"\n\r\t #', max_size=8))),
        st.sampled_from([csv.excel, csv.excel_tab, csv.unix_dialect]),
    )
    def test_every_table_that_csv_writes_can_be_read(
        self, rows: list[tuple[str, str]], dialect: type[csv.Dialect]
    ) -> None:
        class Lines(list[str]):
            def write(self, text: str) -> None:
                self.append(text)

        lines = Lines()
        csv.writer(lines, dialect).writerows([("id", "said"), *rows])
        assert read("".join(lines)) == [name for name, _ in rows]


class TestSource:
    @pytest.fixture
    def collect(self) -> Callable[..., object]:
        async def collect(*names: str, files: tuple[object, ...] = (), skip=lambda _: False) -> tuple[list[str], ...]:
            bad: list[BadLine] = []
            with Source(names, [str(file) for file in files], complain=bad.append, skip=skip) as source:
                self.source = source
                return [name async for name in source.read()], [line.describe() for line in bad]

        return collect

    @pytest.mark.parametrize("chunk", [1, 7, 2**18])
    @pytest.mark.parametrize(
        "encode",
        [
            lambda text: text.encode(),
            lambda text: codecs.BOM_UTF8 + text.encode(),
            lambda text: text.encode("utf-16"),
            lambda text: codecs.BOM_UTF16_BE + text.encode("utf-16-be"),
            lambda text: text.replace("é", "e").encode("utf-16-le"),
            lambda text: text.replace("é", "e").encode("utf-16-be"),
            lambda text: text.replace("\r\n", "\r").encode(),
        ],
    )
    async def test_files_may_be_in_utf_8_or_utf_16(
        self, collect, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, encode, chunk
    ) -> None:
        file = tmp_path / "ids"
        file.write_bytes(encode("é_1\r\nresp_2\r\nresp_3"))
        monkeypatch.setattr(ids, "CHUNK", max(chunk, 2))
        found, bad = await collect(files=(file,))
        assert ([found[0].replace("é", "e"), *found[1:]], bad) == (["e_1", "resp_2", "resp_3"], [])
        assert self.source.total == len(found) - 1  # the last line has no end

    @pytest.mark.parametrize(
        "data", [gzip.compress(b"resp_1\n", mtime=0), b"PK\x03\x04\n\n", b"PAR1\x15\x04\n", b"\x28\xb5\x2f\xfd\n"]
    )
    async def test_a_file_that_is_no_text_is_one_bad_line(self, collect, tmp_path: Path, data: bytes) -> None:
        file, other = tmp_path / "ids", tmp_path / "other"
        file.write_bytes(data)
        other.write_text("resp_2")
        found, bad = await collect(files=(file, other))
        assert (found, bad) == (["resp_2"], [f"{file} is compressed or not text: unpack it, or export it as CSV"])

    async def test_bytes_that_are_not_text_make_a_bad_line(self, collect, tmp_path: Path) -> None:
        file = tmp_path / "ids"
        file.write_bytes(b"resp_1\n\xff\xe9\nresp_3\n")
        assert await collect(files=(file,)) == (
            ["resp_1", "resp_3"],
            [rf"{file}, line 2: '\ufffd\ufffd' cannot be a response id"],
        )

    async def test_a_very_long_line_is_a_bad_line(
        self, collect, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(ids, "CHUNK", 16)
        monkeypatch.setattr(ids, "LINE_LIMIT", 5000)
        file = tmp_path / "ids"
        file.write_text(f"resp_1\n{'x' * 20_000}\nresp_3\n")
        found, (problem,) = await collect(files=(file,))
        assert found == ["resp_1", "resp_3"]
        assert problem == f"{file}, line 2: has more than 5,000 characters; write one id or object per line"
        file.write_text(f"resp_1\n{'x' * 20_000}")
        assert (await collect(files=(file,)))[0] == ["resp_1"]

    async def test_arguments_come_first_and_each_file_is_read_once(self, collect, tmp_path: Path) -> None:
        first, second = tmp_path / "1", tmp_path / "2"
        first.write_text("# one\nb\nc\n")
        second.write_text('id,x\nd,"\n"\nc,"\ne,1\n')
        found, problems = await collect("a", "z", files=(first, second, first), skip={"c", "z"}.__contains__)
        assert found == ["a", "b", "d", "e"]
        assert problems == [f"{second}, line 4: is not a record of a table: a quote is not closed"]
        assert (self.source.total, self.source.yielded, self.source.skipped) == (10, 4, 6)

    async def test_the_ids_of_a_pipe_are_yielded_as_they_arrive(self, collect) -> None:
        reading, writing = os.pipe()
        task = asyncio.create_task(collect("a", files=(f"/dev/fd/{reading}",)))
        await until(lambda: hasattr(self, "source"))
        assert self.source.total is None
        for piece in (b"b", b"1\nb2", b"\n"):
            os.write(writing, piece)
            await asyncio.sleep(0.01)
        assert self.source.yielded == 3
        os.close(writing)
        assert await task == (["a", "b1", "b2"], [])
        os.close(reading)

    async def test_standard_input_is_read_and_left_open(
        self, collect, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        file = tmp_path / "ids"
        file.write_text("a\nb c\n")
        kept = os.dup(0)
        try:
            with file.open() as opened:
                os.dup2(opened.fileno(), 0)
                assert await collect(files=("-", "-")) == (
                    ["a"],
                    ["standard input, line 2: contains a space; write one id per line"],
                )
            os.fstat(0)
        finally:
            os.dup2(kept, 0)
            os.close(kept)
        monkeypatch.setattr("sys.stdin", None)
        with pytest.raises(OSError, match="standard input"):
            await collect(files=("-",))

    async def test_a_source_that_is_ended_yields_no_more_ids(self, tmp_path: Path) -> None:
        file = tmp_path / "ids"
        file.write_text("c\nd\n" * 10)

        async def read(names: list[str], end_after: int) -> list[str]:
            found = []
            with Source(names, [str(file)], complain=found.append, skip=lambda _: False) as source:
                async for name in source.read():
                    found.append(name)
                    if len(found) == end_after:
                        source.end()
            return found

        assert await read(["a", "b"], 1) == ["a"]
        assert await read(["a", "b"], 3) == ["a", "b", "c"]
        file.write_text("x,y\n" * 10)
        assert await read(["a", "b"], 2) == ["a", "b"]

    @pytest.mark.parametrize("text", [b"a\n", b"a\nb"])
    async def test_a_source_can_be_ended_while_it_waits_for_a_pipe(self, text: bytes) -> None:
        reading, writing = os.pipe()
        os.write(writing, text)
        with Source((), [f"/dev/fd/{reading}"], complain=print, skip=lambda _: False) as source:
            async with aclosing(source.read()) as names:
                assert await anext(names) == "a"
                waiting = asyncio.ensure_future(anext(names, None))
                await asyncio.sleep(0.01)
                source.end()
                assert await waiting is None
        os.close(reading)
        os.close(writing)

    async def test_an_error_while_reading_a_file_is_reported(self, collect, tmp_path: Path, monkeypatch) -> None:
        good = tmp_path / "good"
        good.write_text("b\n")

        def fail(*_: object) -> bytes:
            monkeypatch.undo()
            raise OSError(5, "Input/output error")

        monkeypatch.setattr(os, "read", fail)
        found, problems = await collect("a", files=(good,))
        assert (found, problems) == (["a"], [f"{good} cannot be read to the end: Input/output error"])

    def test_a_file_that_cannot_be_opened_is_an_error(self, tmp_path: Path) -> None:
        for path in (tmp_path, tmp_path / "none"):
            with pytest.raises(OSError, match=str(path)):
                Source((), [str(path)], complain=print, skip=lambda _: False)

    def test_an_argument_that_cannot_be_an_id_is_an_error(self) -> None:
        for name in ("..", "", "null", "resp_1,", " resp_1", "'resp_1'", "resp_1\n"):
            with pytest.raises(ValueError, match="cannot be a response id"):
                Source(["a", name], [], complain=print, skip=lambda _: False)
