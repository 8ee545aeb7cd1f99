"""A hostile network: every fault ends in a response or an error of this package, in time, and leaks nothing."""

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
from faults import FAULTS, UNSOLICITED, FaultProxy, NetFault, head, replaced_by

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

BODY_LIMIT = 2**20
SHORT_ANSWER = head("HTTP/1.1 200 OK", "Content-Length: 36") + b'{"id":"resp_1","status":"cancelled"}'

PARSER_DEPENDENT = Response | APIConnectionError
"""The result of answers that some versions of aiohttp's parser accept and others reject."""

RESULTS: dict[type, str] = {
    Response: """closed after the body | no length, connection closed | chunks | chunks with extensions and a trailer
        | HTTP/1.0 | no reason phrase | duplicate headers | headers that are not text | 100 before the answer
        | 103 before the answer | 206 | gzip | deflate | raw deflate | unknown encoding | wrong charset
        | invalid charset | UTF-16 | unsolicited answer after the answer""",
    APITimeoutError: """stalled before the server acts | stalled after the server acted | stalled in the headers
        | stalled in the body | one byte every 20 ms | length too long, connection kept open | trailer of 100 MB
        | chunk extension of 100 MB | endless 100""",
    ResponseDecodeError: """no length, truncated | 204 | 205 | gzip in gzip | gzip in gzip, announced | truncated gzip
        | empty gzip | gzip bomb | deflate bomb | Latin-1 | HTML page | endless body""",
    APIStatusError: "101 | 301 | 303 | 304 | 307",
    InternalServerError: "502 | 504 after the server acted",
    PARSER_DEPENDENT: """duplicate length | bare line feeds | header with a NUL | folded header | invalid zstd
        | invalid brotli | garbage after the answer""",
}
"""The result of one attempt with each fault, where it is not an `APIConnectionError`."""

EXPECTED = dict.fromkeys(FAULTS, APIConnectionError) | {
    name.strip(): kind for kind, names in RESULTS.items() for name in names.split("|")
}

LARGE = [name for name in FAULTS if "MB" in name or "bomb" in name or "endless" in name]


CANCELLING = [
    name
    for name, dialect in DIALECTS.items()
    if name != "devui" and any(reply.cancels for reply in dialect.cancel.values())
]
"""The servers that cancel, and answer a second cancel in a way that shows what the first one did."""


def open_files() -> int:
    """Return the number of open file descriptors of this process."""
    return sum(1 for _ in Path("/dev/fd").iterdir())


def peak_memory(*, reset: bool = False) -> float:
    """Return the peak memory of this process in MB. With `reset`, begin to measure again."""
    if reset:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM"))


@pytest.fixture(autouse=True)
async def no_task_and_no_socket_is_left() -> AsyncIterator[None]:
    tasks, opened = asyncio.all_tasks(), open_files()
    yield
    async with asyncio.timeout(10):
        await until(lambda: not [task for task in asyncio.all_tasks() - tasks if task is not asyncio.current_task()])
        await until(lambda: open_files() <= opened)


@pytest.fixture(autouse=True, scope="module")
def nothing_was_left_unclosed() -> Iterator[None]:
    """An object that was not closed issues a warning when it is collected, and warnings are errors."""
    yield
    gc.collect()


@pytest.fixture
async def server() -> AsyncIterator[Emulator]:
    async with Emulator(script=Script(runs_for=math.inf)) as emulator:
        yield emulator


@asynccontextmanager
async def through(server: Emulator, *faults: NetFault, **options) -> AsyncIterator[AsyncSession]:
    """Open a session whose first exchanges have these faults."""
    async with (
        FaultProxy(server.base_url) as proxy,
        AsyncSession(
            clock=HastyClock(),
            api_key=KEY,
            base_url=proxy.base_url,
            **{"max_body_bytes": BODY_LIMIT, "deadline": 20, **options},
        ) as session,
    ):
        proxy.faults.extend(faults)
        yield session


async def result(call) -> Response | OpenAICancelError:
    """Return the result of a call, or the error of this package that it raises."""
    try:
        return await call
    except OpenAICancelError as error:
        return error


@pytest.mark.slow
class TestOneFault:
    def test_every_fault_has_an_expected_result(self) -> None:
        assert EXPECTED.keys() == FAULTS.keys()

    @pytest.mark.parametrize("name", FAULTS)
    async def test_a_fault_has_its_expected_result_and_stop_succeeds_after_it(
        self, server: Emulator, name: str
    ) -> None:
        fault, kind = FAULTS[name], EXPECTED[name]
        timeout = 0.4 if kind is APITimeoutError else 10.0
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
            assert type(retried) is type(alone)  # final, so it is not retried
        else:
            assert isinstance(retried, Response)
            assert retried.status == "cancelled"
            assert retried.attempts == (1 if isinstance(alone, Response) else 2)
        assert outcome.verdict is Verdict.CANCELLED
        assert server.responses[third].status(time.time()) == "cancelled"

    @pytest.mark.parametrize("ends", ["close", "reset", "stall"])
    async def test_stop_succeeds_after_an_answer_that_ends_at_any_byte(self, server: Emulator, ends) -> None:
        limit = asyncio.Semaphore(16)  # so that only the fault takes time

        async def stop(name: str, place: int) -> Outcome:
            fault = NetFault(sends=replaced_by(SHORT_ANSWER), cut=place, ends=ends)
            async with limit, through(server, fault, timeout=1.0 if ends == "stall" else 10) as session:
                return await session.stop(name, deadline=20)

        names = [server.add() for _ in SHORT_ANSWER]
        outcomes = await asyncio.gather(*(stop(name, place) for place, name in enumerate(names)))
        assert {outcome.verdict for outcome in outcomes} == {Verdict.CANCELLED}
        assert min(outcome.attempts for outcome in outcomes) >= 2
        assert {server.responses[name].status(time.time()) for name in names} == {"cancelled"}

    async def test_a_slow_answer_within_the_time_out_is_read(self, server: Emulator) -> None:
        async with through(server, NetFault(sends=replaced_by(SHORT_ANSWER), pause=0.001)) as session:
            assert (await session.cancel(server.add())).attempts == 1

    @pytest.mark.parametrize("dialect", CANCELLING)
    async def test_stop_succeeds_if_the_answer_is_lost_after_the_server_acted(self, dialect: str) -> None:
        lost = ["reset after the server acted", "closed in the headers", "closed in the body"]
        fast = Emulator(script=Script(runs_for=math.inf), dialect=dialect, clock=lambda: 100 * time.monotonic())
        async with fast as server, AsyncExitStack() as opened:
            names = [server.dialect.show_id(server.add()) for _ in lost]
            sessions = [await opened.enter_async_context(through(server, FAULTS[name])) for name in lost]
            outcomes = await asyncio.gather(*[each.stop(name) for each, name in zip(sessions, names, strict=True)])
            assert {outcome.verdict for outcome in outcomes} == {Verdict.CANCELLED}
            assert {work.status(100 * time.monotonic()) for work in server.responses.values()} == {"cancelled"}


@pytest.mark.slow
async def test_stop_ends_at_its_deadline_if_every_exchange_has_the_same_fault(server: Emulator) -> None:
    """Its verdict is then `unknown`, with an error of this package."""
    limit = asyncio.Semaphore(12)
    wrong: dict[str, object] = {}

    async def stop(name: str, kind: object) -> None:
        async with (
            limit,
            FaultProxy(server.base_url, choose=lambda: FAULTS[name]) as proxy,
            hasty_session(api_key=KEY, base_url=proxy.base_url, max_body_bytes=BODY_LIMIT) as session,
        ):
            deadline = 20 if kind is Response else 0.6
            began = time.monotonic()
            outcome = await session.stop(server.add(), deadline=deadline, timeout=0.2 if deadline < 1 else 10)
            took = time.monotonic() - began
        good = outcome.verdict is Verdict.UNKNOWN and isinstance(outcome.error, OpenAICancelError)
        if (kind is Response) != outcome.stopped and kind is not PARSER_DEPENDENT:
            wrong[name] = outcome
        elif not (outcome.stopped or good) or took > deadline + 3:
            wrong[name] = outcome, took

    await asyncio.gather(*[stop(name, kind) for name, kind in EXPECTED.items()])
    assert wrong == {}


@pytest.mark.slow
class TestMemory:
    @pytest.mark.skipif(sys.platform != "linux", reason="reads the peak of the process's memory from the kernel")
    @pytest.mark.parametrize("name", LARGE)
    async def test_a_large_answer_is_not_kept_in_memory(self, server: Emulator, name: str) -> None:
        async with through(server, FAULTS[name], timeout=0.1, max_retries=0) as session:
            before = peak_memory(reset=True)
            assert isinstance(await result(session.cancel("x")), OpenAICancelError)
            assert peak_memory() - before < 24


class TestConnections:
    async def test_a_server_that_starts_to_listen_later_is_reached_by_a_retry(self, unused_tcp_port: int) -> None:
        relay: list[asyncio.Server] = []

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(SHORT_ANSWER)
            writer.close()

        class StartingClock(HastyClock):
            async def sleep(self, _: float) -> None:
                relay.append(await asyncio.start_server(serve, "127.0.0.1", unused_tcp_port))

        async with AsyncSession(
            api_key=KEY, base_url=f"http://127.0.0.1:{unused_tcp_port}", clock=StartingClock()
        ) as session:
            with pytest.raises(APIConnectionError, match="Connection refused"):
                await session.cancel("x", max_retries=0)
            assert (await session.cancel("x")).attempts == 2
        relay[0].close()

    async def test_a_kept_connection_that_the_server_has_closed_is_replaced(self, server: Emulator) -> None:
        faults = [NetFault(), FAULTS["closed before the request is read"], NetFault(), FAULTS["closed after the body"]]
        async with through(server, *faults, NetFault(), FAULTS["reset before the request is read"]) as session:
            for _ in range(6):
                assert (await session.cancel(server.add())).status == "cancelled"

    @pytest.mark.parametrize("data", [UNSOLICITED, head("HTTP/1.1 408 Request Timeout", "Content-Length: 0"), b"\0"])
    async def test_unsolicited_data_is_not_read_as_the_next_answer(self, data: bytes) -> None:
        sent = asyncio.Event()
        connections = 0

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            nonlocal connections
            connections += 1
            await reader.readuntil(b"\r\n\r\n")
            writer.write(SHORT_ANSWER)
            if connections == 1:
                await sent.wait()
                writer.write(data)
            await reader.read()
            writer.close()

        listener = await asyncio.start_server(serve, "127.0.0.1", 0)
        async with AsyncSession(
            clock=HastyClock(), api_key=KEY, base_url=f"http://127.0.0.1:{listener.sockets[0].getsockname()[1]}"
        ) as session:
            assert (await session.cancel("resp_1")).id == "resp_1"
            # aiohttp has no public view of its idle connections, and the test must know when the data has arrived.
            [[(idle, _)]] = session.caller.transport.client.connector._conns.values()
            sent.set()
            await until(lambda: idle.should_close or not idle.is_connected())
            assert (await session.cancel("resp_2")).id == "resp_1"  # the only id that this server knows
        assert connections == 2
        listener.close()

    @pytest.mark.slow
    async def test_stop_many_stops_all_through_all_faults_at_once(self, server: Emulator) -> None:
        """The requests share a pool of connections. Which request meets which fault is left to chance.

        Timeouts and refusals are left out: two refusals in a row would be a verdict.
        """
        others = {APITimeoutError, APIStatusError}
        faults = [FAULTS[name] for name, kind in EXPECTED.items() if kind not in others and name not in LARGE]
        async with through(server, *faults, timeout=10) as session:
            names = [server.add() for _ in range(100)]
            verdicts = {outcome.response_id: outcome.verdict async for outcome in session.stop_many(names)}
        assert verdicts == dict.fromkeys(names, Verdict.CANCELLED)
        assert {server.responses[name].status(time.time()) for name in names} == {"cancelled"}


class TestTLS:
    """An error of a certificate is final, and no request is sent over such a connection."""

    AUTHORITY = trustme.CA()

    @pytest.fixture
    async def trusting_connector(self) -> aiohttp.TCPConnector:
        context = ssl.create_default_context()
        self.AUTHORITY.configure_trust(context)
        return aiohttp.TCPConnector(ssl=context)

    @staticmethod
    def server_context(certificate: trustme.LeafCert | trustme.CA) -> ssl.SSLContext:
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        if isinstance(certificate, trustme.CA):
            with certificate.cert_pem.tempfile() as cert, certificate.private_key_pem.tempfile() as key:
                context.load_cert_chain(cert, key)
        else:
            certificate.configure_cert(context)
        return context

    @pytest.mark.parametrize(
        ("certificate", "message"),
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
    async def test_a_bad_certificate_is_a_permanent_error(
        self, server: Emulator, trusting_connector: aiohttp.TCPConnector, certificate, message: str
    ) -> None:
        async with (
            FaultProxy(server.base_url, tls=self.server_context(certificate(self.AUTHORITY))) as proxy,
            aiohttp.ClientSession(connector=trusting_connector) as client,
            hasty_session(api_key=KEY, base_url=proxy.base_url, client_session=client) as session,
        ):
            with pytest.raises(APIConnectionError, match=message) as caught:
                await session.cancel("x")
            assert (caught.value.permanent, caught.value.attempts) == (True, 1)
            outcome = await session.stop("x")
            assert (outcome.verdict, outcome.attempts) == (Verdict.UNKNOWN, 2)
        assert server.received == []

    @pytest.mark.parametrize("name", ["closed in the body", "reset in the headers", "closed before the server acts"])
    async def test_stop_succeeds_after_an_encrypted_connection_was_lost(
        self, server: Emulator, trusting_connector: aiohttp.TCPConnector, name: str
    ) -> None:
        async with (
            FaultProxy(server.base_url, tls=self.server_context(self.AUTHORITY.issue_cert("127.0.0.1"))) as proxy,
            aiohttp.ClientSession(connector=trusting_connector) as client,
            hasty_session(api_key=KEY, base_url=proxy.base_url, client_session=client) as session,
        ):
            proxy.faults.append(FAULTS[name])
            outcome = await session.stop(identifier := server.add())
            # The look after the lost answer finds the response cancelled only if the server got the request.
            assert (outcome.verdict, outcome.attempts) == (Verdict.CANCELLED, 2 if FAULTS[name].forwards else 3)
            assert server.responses[identifier].status(time.time()) == "cancelled"

    @pytest.mark.parametrize(
        "answer", [SHORT_ANSWER, b"\x15\x03\x01\x00\x02\x02\x28", b""], ids=["HTTP", "TLS alert", "nothing"]
    )
    async def test_a_server_without_tls_is_a_transient_error(self, answer: bytes) -> None:
        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.read(1000)
            writer.write(answer)
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

    async def test_a_handshake_without_an_answer_is_a_time_out(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            url = f"https://127.0.0.1:{listener.getsockname()[1]}"
            async with AsyncSession(
                clock=HastyClock(), api_key=KEY, base_url=url, connect_timeout=0.05, max_retries=1
            ) as session:
                with pytest.raises(APITimeoutError, match="No connection") as caught:
                    await session.cancel("x")
                assert caught.value.attempts == 2


@pytest.mark.slow
async def test_the_short_soak_loses_no_stop_and_issues_no_warning(python: str) -> None:
    soak = Path(__file__).parent / "benchmarks" / "soak.py"
    done = await asyncio.to_thread(
        subprocess.run, [python, soak, "2000"], capture_output=True, text=True, check=False, timeout=50
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "2,000 stops" in done.stdout
