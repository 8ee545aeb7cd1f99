"""Names are resolved wherever a guard may have to stop its response."""

import asyncio
import math
import socket
import subprocess
import threading

import pytest
from conftest import KEY, hasty_session, until

from openai_cancel import APIConnectionError, AsyncSession, SessionStateError
from openai_cancel.emulator import Emulator
from openai_cancel.resolver import ThreadResolver
from openai_cancel.threads import run_in_thread

PREAMBLE = """
import asyncio, atexit, threading, time
from openai_cancel import AsyncSession, Session

async def fail(url, name):
    async with AsyncSession(api_key="any", base_url=url) as session:
        try:
            async with session.guard(name) as guard:
                raise ValueError
        except ValueError:
            print(guard.outcome.verdict, flush=True)
"""

PLACES = {
    "in a thread after the main thread has ended": """
def late():
    threading.main_thread().join()
    time.sleep(0.1)
    asyncio.run(fail(URL, NAME))
threading.Thread(target=late).start()
""",
    "in a function of atexit": "atexit.register(lambda: asyncio.run(fail(URL, NAME)))",
    "in a thread": """
thread = threading.Thread(target=lambda: asyncio.run(fail(URL, NAME)))
thread.start()
thread.join()
""",
    "in a function of atexit, with a blocking session": """
session = Session(api_key="any", base_url=URL).open()
def late():
    try:
        with session.guard(NAME) as guard:
            raise ValueError
    except ValueError:
        print(guard.outcome.verdict, flush=True)
    session.close()
atexit.register(late)
""",
    "in a thread after the main thread has ended, with a blocking session": """
def late():
    threading.main_thread().join()
    time.sleep(0.1)
    print(session.stop(NAME).verdict, flush=True)
    session.close()
session = Session(api_key="any", base_url=URL).open()
threading.Thread(target=late).start()
""",
}


@pytest.mark.parametrize("place", PLACES)
async def test_a_response_is_stopped(server: Emulator, create, python: str, place: str) -> None:
    url = server.base_url.replace("127.0.0.1", "localhost")
    script = f"URL, NAME = {url!r}, {create()!r}\n{PREAMBLE}{PLACES[place]}"
    done = await asyncio.to_thread(
        subprocess.run, [python, "-c", script], capture_output=True, text=True, timeout=30, check=False
    )
    assert (done.stdout, done.stderr) == ("cancelled\n", "")


async def test_an_executor_that_is_shut_down_does_not_matter(server: Emulator, create) -> None:
    loop = asyncio.get_running_loop()
    await loop.shutdown_default_executor()
    url = server.base_url.replace("127.0.0.1", "localhost")
    async with AsyncSession(api_key=KEY, base_url=url) as session:
        assert (await session.cancel(create())).status == "cancelled"


async def test_no_thread_is_left(server: Emulator, create) -> None:
    before = {*threading.enumerate()}
    url = server.base_url.replace("127.0.0.1", "localhost")
    for _ in range(5):
        async with AsyncSession(api_key=KEY, base_url=url) as session:
            await session.cancel(create())
    assert {*threading.enumerate()} <= before


async def test_a_lookup_that_hangs_holds_up_nobody(server: Emulator, create, monkeypatch: pytest.MonkeyPatch) -> None:
    name = create()
    hangs, ends = threading.Event(), threading.Event()

    def hang(*_: object, **__: object) -> None:
        hangs.set()
        ends.wait()

    async with AsyncSession(api_key=KEY, base_url="http://localhost:9", timeout=math.inf, deadline=math.inf) as stuck:
        with monkeypatch.context() as patched:
            patched.setattr(socket, "getaddrinfo", hang)
            call = asyncio.create_task(stuck.cancel("x"))
            await until(hangs.is_set)
        async with AsyncSession(api_key=KEY, base_url=server.base_url) as session:
            assert (await session.cancel(name)).status == "cancelled"
        await stuck.close()
        with pytest.raises(SessionStateError, match="was closed while the call was under way"):
            await call
    ends.set()


async def test_a_name_that_nobody_has() -> None:
    async with hasty_session(api_key=KEY, base_url="http://host.invalid:81", max_retries=0) as session:
        with pytest.raises(APIConnectionError, match=r"Cannot connect to host\.invalid:81: "):
            await session.cancel("x")


class TestAddresses:
    async def test_a_host_name_resolves_to_its_addresses(self) -> None:
        found = await ThreadResolver().resolve("localhost", 80, socket.AF_INET)
        assert [(each["hostname"], each["host"], each["port"], each["family"]) for each in found] == [
            ("localhost", "127.0.0.1", 80, socket.AF_INET)
        ]

    async def test_a_link_local_one_has_its_zone(self, monkeypatch: pytest.MonkeyPatch) -> None:
        zone = socket.if_nametoindex("lo")
        entry = (socket.AF_INET6, socket.SOCK_STREAM, 6, "", ("fe80::1", 80, 0, zone))
        monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: [entry])
        [found] = await ThreadResolver().resolve("router.example", 80, socket.AF_INET6)
        assert found["host"] == "fe80::1%lo"


class TestRunInThread:
    async def test_an_error_is_raised(self) -> None:
        with pytest.raises(ZeroDivisionError):
            await run_in_thread(lambda: 1 / 0, name="test")

    async def test_where_no_thread_can_be_started_it_blocks(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def refuse(_: threading.Thread) -> None:
            raise RuntimeError("can't create new thread at interpreter shutdown")

        monkeypatch.setattr(threading.Thread, "start", refuse)
        assert await run_in_thread(threading.get_ident, name="test") == threading.get_ident()
