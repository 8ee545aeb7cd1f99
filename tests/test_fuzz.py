"""Property tests: any bytes from a server or in a file lead to a result or to an exception of this package."""

import asyncio
import codecs
import json
import pickle
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from conftest import KEY
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from multidict import CIMultiDict

from openai_cancel import AsyncSession, OpenAICancelError, Response
from openai_cancel.cli.documents import to_json
from openai_cancel.cli.ids import BadLine, IdReader, Row, Source
from openai_cancel.cli.log import Log
from openai_cancel.cli.output import printable
from openai_cancel.emulator.work import Script, Work
from openai_cancel.settings import Settings
from openai_cancel.wire import Answer, Wire, decode

pytestmark = pytest.mark.slow

WIRE = Wire.from_settings(Settings.openai(api_key=KEY))
REQUEST = WIRE.request("POST", "resp_1", "/cancel")
DOCUMENT = Work(request={"model": "any"}, script=Script(runs_for=0), started=0.0).document(1.0)

many_examples = settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])
few_examples = settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.too_slow])

NUMBERS = ["", "-1", "0", "1e999", "nan", "9" * 400, "0x10", "٣", "1_0", " 7 "]
HEADERS = [
    "retry-after", "retry-after-ms", "x-should-retry", "date", "location", "x-request-id", "apim-request-id",
    "content-type", "content-encoding", "content-length", "transfer-encoding", "connection", "set-cookie", "upgrade",
]  # fmt: skip
VALUES = [
    *NUMBERS, "true", "Wed, 21 Oct 2015 07:28:00 GMT", "Wed, 99 Foo 2015 07:28:00 +9999", "gzip", "br", "chunked",
    "close", "a=b; expires=never", "h2c", KEY,
]  # fmt: skip

anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner, max_size=3),
    max_leaves=9,
)
NAMES = ["error", "detail", "message", "msg", "code", "type", "param", "loc", "title", "additionalInfo", "status", "id"]
errors = st.recursive(
    anything,
    lambda inner: st.dictionaries(st.sampled_from([*NAMES, "object", "request_id", "statusCode"]), inner, max_size=4),
    max_leaves=9,
)
documents = st.dictionaries(st.sampled_from(list(DOCUMENT)), anything, max_size=4).map(lambda more: DOCUMENT | more)


@st.composite
def damaged(draw, bodies) -> bytes:
    """Draw a body, and replace or remove some of its bytes."""
    body = bytearray(draw(bodies))
    for _ in range(draw(st.integers(0, 3))):
        start = draw(st.integers(0, len(body)))
        body[start : start + draw(st.integers(0, 9))] = draw(st.binary(max_size=9))
    return bytes(body)


json_bodies = (documents | errors).map(lambda document: json.dumps(document).encode())
bodies = (
    st.binary(max_size=200)
    | json_bodies
    | damaged(json_bodies)
    | json_bodies.map(lambda body: body.decode().encode("utf-16"))
)
values = st.sampled_from(VALUES) | st.text(max_size=20)
statuses = st.integers(100, 599) | st.sampled_from([200, 0, 99, 600, 999, 10**6])


def read_everything(result: Response | OpenAICancelError) -> None:
    """Read everything that a result offers."""
    assert str(result)
    assert repr(result)
    if isinstance(result, Response):
        assert isinstance(result.to_dict(), dict)
        assert isinstance(result.problems, tuple | list)
        assert isinstance(result.output_text, str | None)
        assert result.created is None or result.created.tzinfo
        return
    assert str(pickle.loads(pickle.dumps(result))) == str(result)
    assert "\n" not in to_json(result.to_dict())
    assert printable(result).isprintable()


class TestAnswers:
    @many_examples
    @given(statuses, st.lists(st.tuples(st.sampled_from(HEADERS), values), max_size=6), bodies, st.booleans())
    def test_any_answer_is_decoded_or_refused(
        self, status: int, headers: list[tuple[str, str]], body: bytes, complete
    ) -> None:
        try:
            result = decode(Answer(status, CIMultiDict(headers), body, complete), REQUEST)
        except OpenAICancelError as error:
            result = error
        read_everything(result)

    @few_examples
    @given(
        st.lists(
            damaged(
                st.tuples(
                    st.sampled_from(
                        [b"200 OK", b"200", b"404 No", b"301 There", b"101 Hm", b"099", b"599 \xff", b"204"]
                    ),
                    st.lists(st.tuples(st.sampled_from(HEADERS), values), max_size=4),
                    bodies,
                ).map(
                    lambda parts: (
                        b"HTTP/1.1 %b\r\n%b\r\n%b"
                        % (
                            parts[0],
                            b"".join(f"{name}: {value}\r\n".encode(errors="replace") for name, value in parts[1]),
                            parts[2],
                        )
                    )
                )
            ),
            min_size=1,
            max_size=3,
        )
    )
    def test_any_bytes_on_a_socket_are_a_response_or_an_error(self, server, answers: list[bytes]) -> None:
        read_everything(server(answers))

    @pytest.fixture(scope="class")
    @staticmethod
    def server() -> Iterator[object]:
        """A function that calls a server which answers with the given pieces of bytes, and returns the result."""
        with asyncio.Runner() as runner, answering(runner) as (url, pieces):

            async def call() -> Response | OpenAICancelError:
                async with AsyncSession(api_key=KEY, base_url=url, timeout=5, max_retries=0) as session:
                    try:
                        return await session.cancel("resp_1")
                    except OpenAICancelError as error:
                        return error

            def answer(new_pieces: list[bytes]) -> Response | OpenAICancelError:
                pieces[:] = new_pieces
                return runner.run(call())

            yield answer


@contextmanager
def answering(runner: asyncio.Runner) -> Iterator[tuple[str, list[bytes]]]:
    """Run a server that sends the pieces in the list to each client. Yield its URL and the list."""
    pieces: list[bytes] = []
    running: set[asyncio.Task] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        running.add(task)
        try:
            await reader.readuntil(b"\r\n\r\n")
            for piece in pieces:
                writer.write(piece)
                await writer.drain()
                await asyncio.sleep(0)
        except ConnectionError:
            pass
        finally:
            writer.close()
            running.discard(task)

    async def start() -> asyncio.Server:
        return await asyncio.start_server(serve, "127.0.0.1", 0)

    async def stop() -> None:
        listener.close()
        await asyncio.gather(*running)
        await asyncio.sleep(0)

    listener = runner.run(start())
    try:
        yield f"http://127.0.0.1:{listener.sockets[0].getsockname()[1]}", pieces
    finally:
        runner.run(stop())


LINES = [
    "resp_1", "response_id,x", "id;a", "id\tb", '{"id": "resp_1"}', '{"response_id": 1}', '"resp_2"', "[1]", "#", "..",
    '"open', 'a "b" c', ",", ";;", "\r", "\x00", "\ufeffid", "x" * 5000, "{" * 99, "\u2028", "\x1c", "\x85",
]  # fmt: skip
lines = st.lists(st.sampled_from(LINES) | st.text(max_size=20), max_size=12)
contents = (
    st.binary(max_size=200)
    | damaged(lines.map(lambda parts: "\n".join(parts).encode(errors="surrogatepass")))
    | lines.map(lambda parts: codecs.BOM_UTF16_LE + "\n".join(parts).encode("utf-16-le", errors="surrogatepass"))
)


class TestFilesOfTheCommand:
    @many_examples
    @given(lines)
    def test_any_lines_are_ids_or_problems_with_a_line_number(self, texts: list[str]) -> None:
        reader = IdReader()
        found = [item for text in texts for item in reader.read(text)]
        for item in [*found, *reader.end()]:
            assert isinstance(item, Row) or 1 <= item.number <= len(texts)
            assert isinstance(item, Row) or item.problem
            if isinstance(item, Row):
                assert WIRE.request("GET", item.response_id).url.isascii()

    def test_a_carriage_return_inside_the_first_line_is_a_problem(self) -> None:
        assert isinstance(next(IdReader().read("resp_1\rresp_2")), BadLine)

    @few_examples
    @given(contents)
    def test_any_file_of_ids_yields_ids_that_can_be_sent_and_printable_complaints(self, content: bytes) -> None:
        complaints: list[str] = []

        async def read(path: str) -> list[str]:
            with Source([], [path], complain=complaints.append, skip=lambda _: False) as source:
                found = [name async for name in source.read()]
                assert source.yielded == len(found)
                return found

        with tempfile.NamedTemporaryFile() as file:
            file.write(content)
            file.flush()
            found = asyncio.run(read(file.name))
        for name in found:
            assert WIRE.request("GET", name).url.isascii()
        assert all(printable(complaint).isprintable() for complaint in complaints)

    @few_examples
    @given(
        damaged(
            st.lists(
                st.fixed_dictionaries({"id": anything, "stopped": anything})
                | anything
                | st.just({"id": "a", "stopped": True})
            ).map(lambda parts: b"\n".join(json.dumps(part).encode() for part in parts))
        )
    )
    def test_any_log_to_resume_from_can_be_read(self, content: bytes) -> None:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "log"
            path.write_bytes(content)
            with Log(path) as log:
                assert log.stopped() is not None
