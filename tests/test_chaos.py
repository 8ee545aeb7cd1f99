"""A hostile network: whatever goes wrong, an answer or an error of ours comes in time, and nothing is left behind."""

import asyncio
import gc
import math
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import aiohttp
import pytest
import trustme
from conftest import KEY, HastyClock, hasty_session, until
from faults import FAULTS, STRAY, FaultProxy, NetFault, head, instead

from openai_cancel import (
    APIConnectionError,
    APIStatusError,
    APITimeoutError,
    AsyncSession,
    InternalServerError,
    OpenAICancelError,
    Outcome,
    Response,
    ResponseDecodeError,
    Verdict,
)
from openai_cancel.emulator import DIALECTS, Emulator, Script

SMALL = 2**20
SHORT = head("HTTP/1.1 200 OK", "Content-Length: 36") + b'{"id":"resp_1","status":"cancelled"}'

_TOLERANCE = Response | APIConnectionError
"""Of what some parsers take and others do not."""

RESULTS: dict[type, str] = {
    Response: """closed after the body | no length, closed | chunks | chunks with extensions and a trailer | HTTP/1.0
        | no reason phrase | headers twice | headers that are no text | 100 before it | 103 before it | 206 | gzip
        | deflate | deflate without its header | an unknown encoding | a wrong charset | a charset that is none | UTF-16
        | another answer after it""",
    APITimeoutError: """stalled before the server acts | stalled after the server acted | stalled in the headers
        | stalled in the body | a byte from time to time | length too long, kept | a trailer of 100 MB
        | a chunk extension of 100 MB | 100 for ever""",
    ResponseDecodeError: """no length, cut | 204 | 205 | gzip in gzip | gzip in gzip, announced | gzip that is cut
        | gzip that is empty | a gzip bomb | a deflate bomb | Latin-1 | a page | a body without an end""",
    APIStatusError: "101 | 301 | 303 | 304 | 307",
    InternalServerError: "502 | 504 after the server acted",
    _TOLERANCE: """length twice | bare line feeds | a header with a NUL | a folded header | zstd that is none
        | brotli that is none | garbage after it""",
}
"""What becomes of one attempt, where it is not an `APIConnectionError`."""

EXPECTED = dict.fromkeys(FAULTS, APIConnectionError) | {
    name.strip(): kind for kind, names in RESULTS.items() for name in names.split("|")
}

LARGE = [name for name in FAULTS if "MB" in name or "bomb" in name or "end" in name or "for ever" in name]


def files() -> int:
    return sum(1 for _ in Path("/dev/fd").iterdir())


def memory(*, afresh: bool = False) -> float:
    """The most that this process has used so far, or since it was last asked to begin afresh, in MB."""
    if afresh:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM"))


@pytest.fixture(autouse=True)
async def nothing_is_left() -> AsyncIterator[None]:
    """No task and no socket, once a test is over."""
    tasks, opened = asyncio.all_tasks(), files()
    yield
    async with asyncio.timeout(10):
        await until(lambda: not [task for task in asyncio.all_tasks() - tasks if task is not asyncio.current_task()])
        await until(lambda: files() <= opened)


@pytest.fixture(autouse=True, scope="module")
def nothing_is_unclosed() -> Iterator[None]:
    """What nobody closed is a warning when it is collected, and so an error."""
    yield
    gc.collect()


@pytest.fixture
async def server() -> AsyncIterator[Emulator]:
    async with Emulator(script=Script(runs_for=math.inf)) as emulator:
        yield emulator


@asynccontextmanager
async def through(server: Emulator, *faults: NetFault, **options) -> AsyncIterator[AsyncSession]:
    """A session whose first exchanges go wrong."""
    async with (
        FaultProxy(server.base_url) as proxy,
        AsyncSession(
            clock=HastyClock(),
            api_key=KEY,
            base_url=proxy.base_url,
            **{"max_body_bytes": SMALL, "deadline": 20, **options},
        ) as session,
    ):
        proxy.faults.extend(faults)
        yield session


async def result(call) -> Response | OpenAICancelError:
    """What a call gives, or raises, if that is one of ours."""
    try:
        return await call
    except OpenAICancelError as error:
        return error


class TestOneFault:
    def test_each_has_an_expectation(self) -> None:
        assert EXPECTED.keys() == FAULTS.keys()

    @pytest.mark.parametrize("name", FAULTS)
    async def test_there_is_an_answer_or_an_error_of_ours_and_the_verdict_is_right(
        self, server: Emulator, name: str
    ) -> None:
        fault, kind = FAULTS[name], EXPECTED[name]
        timeout = 0.15 if kind is APITimeoutError else 10.0
        first, second, third = server.add(), server.add(), server.add()

        async def once() -> Response | OpenAICancelError:
            async with through(server, fault, timeout=timeout) as session:
                return await result(session.cancel(first, max_retries=0))

        async def with_retries() -> Response | OpenAICancelError:
            async with through(server, fault, timeout=timeout) as session:
                return await result(session.cancel(second))

        async def stop() -> Outcome:
            async with through(server, fault, timeout=timeout) as session:
                return await session.stop(third, deadline=20)

        began = time.monotonic()
        alone, retried, outcome = await asyncio.gather(once(), with_retries(), stop())
        assert time.monotonic() - began < 20
        assert type(alone) is kind if isinstance(kind, type) else isinstance(alone, kind)
        assert alone.attempts == 1
        if isinstance(alone, ResponseDecodeError) or type(alone) is APIStatusError:
            assert type(retried) is type(alone)  # it would be the same again
        else:
            assert isinstance(retried, Response)
            assert retried.status == "cancelled"
            assert retried.attempts == (1 if isinstance(alone, Response) else 2)
        assert outcome.verdict is Verdict.CANCELLED
        assert server.responses[third].status(time.time()) == "cancelled"

    @pytest.mark.parametrize("ends", ["close", "reset", "stall"])
    async def test_at_each_byte_of_an_answer(self, server: Emulator, ends) -> None:
        faults = [NetFault(sends=instead(SHORT), cut=place, ends=ends) for place in range(len(SHORT))]
        names = [server.add() for _ in faults]
        few = asyncio.Semaphore(16)  # so that only the fault takes time

        async def stop(name: str) -> Outcome:
            async with few:
                return await session.stop(name, deadline=20)

        async with through(server, *faults, timeout=0.2 if ends == "stall" else 10) as session:
            outcomes = await asyncio.gather(*map(stop, names))
        assert {outcome.verdict for outcome in outcomes} == {Verdict.CANCELLED}
        assert sum(outcome.attempts for outcome in outcomes) >= len(names) + len(faults)
        assert {server.responses[name].status(time.time()) for name in names} == {"cancelled"}

    async def test_a_drip_that_is_fast_enough(self, server: Emulator) -> None:
        async with through(server, NetFault(sends=instead(SHORT), pause=0.001)) as session:
            assert (await session.cancel(server.add())).attempts == 1

    @pytest.mark.parametrize("dialect", DIALECTS)
    async def test_an_answer_that_is_lost_after_the_server_acted(self, dialect: str) -> None:
        lost = ["reset after the server acted", "closed in the headers", "closed in the body"]
        fast = Emulator(script=Script(runs_for=math.inf), dialect=dialect, clock=lambda: 100 * time.monotonic())
        async with fast as server, AsyncExitStack() as opened:
            names = [server.dialect.show_id(server.add()) for _ in lost]
            sessions = [await opened.enter_async_context(through(server, FAULTS[name])) for name in lost]
            outcomes = await asyncio.gather(*[each.stop(name) for each, name in zip(sessions, names, strict=True)])
            assert {outcome.verdict for outcome in outcomes} == {Verdict.CANCELLED}
            assert {work.status(100 * time.monotonic()) for work in server.responses.values()} == {"cancelled"}


async def test_faults_that_do_not_end(server: Emulator) -> None:
    """The deadline holds, the error is ours, and nothing is claimed that nobody said."""
    some = asyncio.Semaphore(24)
    wrong: dict[str, object] = {}

    async def stop(name: str, kind: object) -> None:
        async with (
            some,
            FaultProxy(server.base_url, choose=lambda: FAULTS[name]) as proxy,
            hasty_session(api_key=KEY, base_url=proxy.base_url, max_body_bytes=SMALL) as session,
        ):
            deadline = 20 if kind is Response else 0.6
            began = time.monotonic()
            outcome = await session.stop(server.add(), deadline=deadline, timeout=0.2 if deadline < 1 else 10)
            took = time.monotonic() - began
        good = outcome.verdict is Verdict.UNKNOWN and isinstance(outcome.error, OpenAICancelError)
        if (kind is Response) != outcome.stopped and kind is not _TOLERANCE:
            wrong[name] = outcome
        elif not (outcome.stopped or good) or took > deadline + 1:
            wrong[name] = outcome, took

    await asyncio.gather(*[stop(name, kind) for name, kind in EXPECTED.items()])
    assert wrong == {}


class TestMemory:
    @pytest.mark.skipif(sys.platform != "linux", reason="reads the peak of the process's memory from the kernel")
    @pytest.mark.parametrize("name", LARGE)
    async def test_nothing_large_is_held(self, server: Emulator, name: str) -> None:
        async with through(server, FAULTS[name], timeout=0.1, max_retries=0) as session:
            before = memory(afresh=True)
            assert isinstance(await result(session.cancel("x")), OpenAICancelError)
            assert memory() - before < 24


class TestConnections:
    async def test_nobody_listens_at_first(self, unused_tcp_port: int) -> None:
        relay: list[asyncio.Server] = []

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(SHORT)
            writer.close()

        class Waits(HastyClock):
            async def sleep(self, _: float) -> None:
                relay.append(await asyncio.start_server(serve, "127.0.0.1", unused_tcp_port))

        async with AsyncSession(api_key=KEY, base_url=f"http://127.0.0.1:{unused_tcp_port}", clock=Waits()) as session:
            with pytest.raises(APIConnectionError, match="Connection refused"):
                await session.cancel("x", max_retries=0)
            assert (await session.cancel("x")).attempts == 2
        relay[0].close()

    async def test_a_kept_connection_is_closed_under_us(self, server: Emulator) -> None:
        faults = [NetFault(), FAULTS["closed before the request is read"], NetFault(), FAULTS["closed after the body"]]
        async with through(server, *faults, NetFault(), FAULTS["reset before the request is read"]) as session:
            for _ in range(6):
                assert (await session.cancel(server.add())).status == "cancelled"

    @pytest.mark.parametrize("unasked", [STRAY, head("HTTP/1.1 408 Request Timeout", "Content-Length: 0"), b"\0"])
    async def test_what_comes_unasked_is_not_taken_for_the_next_answer(self, unasked: bytes) -> None:
        sent = asyncio.Event()
        connections = 0

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            nonlocal connections
            connections += 1
            await reader.readuntil(b"\r\n\r\n")
            writer.write(SHORT)
            if connections == 1:
                await sent.wait()
                writer.write(unasked)
            await reader.read()
            writer.close()

        listener = await asyncio.start_server(serve, "127.0.0.1", 0)
        async with AsyncSession(
            clock=HastyClock(), api_key=KEY, base_url=f"http://127.0.0.1:{listener.sockets[0].getsockname()[1]}"
        ) as session:
            assert (await session.cancel("resp_1")).id == "resp_1"
            [[(idle, _)]] = session.caller.transport.client.connector._conns.values()
            sent.set()
            await until(lambda: idle.should_close or not idle.is_connected())
            assert (await session.cancel("resp_2")).id == "resp_1"  # as this server says of all
        assert connections == 2
        listener.close()

    async def test_many_at_once_through_every_fault(self, server: Emulator) -> None:
        """They share a pool of connections, and disturb each other in nothing.

        Which exchange meets which fault is left to chance; two refusals in a row would be an answer.
        """
        others = {APITimeoutError, APIStatusError}
        faults = [FAULTS[name] for name, kind in EXPECTED.items() if kind not in others and name not in LARGE]
        async with through(server, *faults, timeout=10) as session:
            names = [server.add() for _ in range(100)]
            verdicts = {outcome.response_id: outcome.verdict async for outcome in session.stop_many(names)}
        assert verdicts == dict.fromkeys(names, Verdict.CANCELLED)
        assert {server.responses[name].status(time.time()) for name in names} == {"cancelled"}


class TestTLS:
    """What is wrong with a certificate is not tried again, and no request goes over such a connection."""

    AUTHORITY = trustme.CA()

    @pytest.fixture
    async def trusting(self) -> aiohttp.TCPConnector:
        context = ssl.create_default_context()
        self.AUTHORITY.configure_trust(context)
        return aiohttp.TCPConnector(ssl=context)

    @staticmethod
    def showing(certificate: trustme.LeafCert | trustme.CA) -> ssl.SSLContext:
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        if isinstance(certificate, trustme.CA):
            with certificate.cert_pem.tempfile() as cert, certificate.private_key_pem.tempfile() as key:
                context.load_cert_chain(cert, key)
        else:
            certificate.configure_cert(context)
        return context

    @pytest.mark.parametrize(
        ("certificate", "words"),
        [
            (lambda authority: authority.issue_cert("another.example"), "IP address mismatch"),
            (
                lambda authority: authority.issue_cert(
                    "127.0.0.1", not_before=datetime.now(UTC) - timedelta(9), not_after=datetime.now(UTC) - timedelta(1)
                ),
                "certificate has expired",
            ),
            (lambda _: trustme.CA(), "self-signed certificate"),
            (lambda _: trustme.CA().issue_cert("127.0.0.1"), "unable to get local issuer certificate"),
        ],
        ids=["wrong name", "expired", "self-signed", "unknown authority"],
    )
    async def test_a_certificate_that_cannot_be_trusted(
        self, server: Emulator, trusting: aiohttp.TCPConnector, certificate, words: str
    ) -> None:
        async with (
            FaultProxy(server.base_url, tls=self.showing(certificate(self.AUTHORITY))) as proxy,
            aiohttp.ClientSession(connector=trusting) as client,
            hasty_session(api_key=KEY, base_url=proxy.base_url, client_session=client) as session,
        ):
            with pytest.raises(APIConnectionError, match=words) as caught:
                await session.cancel("x")
            assert (caught.value.permanent, caught.value.attempts) == (True, 1)
            outcome = await session.stop("x")
            assert (outcome.verdict, outcome.attempts) == (Verdict.UNKNOWN, 2)
        assert server.received == []

    @pytest.mark.parametrize("name", ["closed in the body", "reset in the headers", "closed before the server acts"])
    async def test_it_is_cut(self, server: Emulator, trusting: aiohttp.TCPConnector, name: str) -> None:
        async with (
            FaultProxy(server.base_url, tls=self.showing(self.AUTHORITY.issue_cert("127.0.0.1"))) as proxy,
            aiohttp.ClientSession(connector=trusting) as client,
            hasty_session(api_key=KEY, base_url=proxy.base_url, client_session=client) as session,
        ):
            proxy.faults.append(FAULTS[name])
            outcome = await session.stop(identifier := server.add())
            assert (outcome.verdict, outcome.attempts) == (Verdict.CANCELLED, 2)
            assert server.responses[identifier].status(time.time()) == "cancelled"

    @pytest.mark.parametrize("said", [SHORT, b"\x15\x03\x01\x00\x02\x02\x28", b""], ids=["HTTP", "an alert", "nothing"])
    async def test_there_is_none(self, said: bytes) -> None:
        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.read(1000)
            writer.write(said)
            writer.close()

        listener = await asyncio.start_server(serve, "127.0.0.1", 0)
        port = listener.sockets[0].getsockname()[1]
        async with AsyncSession(
            clock=HastyClock(), api_key=KEY, base_url=f"https://127.0.0.1:{port}", max_retries=1
        ) as session:
            with pytest.raises(APIConnectionError) as caught:
                await session.cancel("x")
            assert (caught.value.permanent, caught.value.attempts) == (False, 2)
        listener.close()

    async def test_the_handshake_is_not_answered(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            url = f"https://127.0.0.1:{listener.getsockname()[1]}"
            async with AsyncSession(
                clock=HastyClock(), api_key=KEY, base_url=url, connect_timeout=0.05, max_retries=1
            ) as session:
                with pytest.raises(APITimeoutError, match="No connection") as caught:
                    await session.cancel("x")
                assert caught.value.attempts == 2


async def test_soak(python: str) -> None:
    """The short form of the benchmark: no stop is lost or wrong, and nothing is warned of."""
    soak = Path(__file__).parent / "benchmarks" / "soak.py"
    done = await asyncio.to_thread(
        subprocess.run, [python, soak, "2000"], capture_output=True, text=True, check=False, timeout=50
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "2,000 stops" in done.stdout
