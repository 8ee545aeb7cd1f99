"""Hosts that replace threads by greenlets: gevent works, eventlet is told what to do."""

import asyncio
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import pytest
from conftest import KEY
from processes import running

from openai_cancel.emulator import Emulator

pytestmark = pytest.mark.slow

HERE = Path(__file__).parent


@asynccontextmanager
async def gunicorn(server: Emulator, port: int, *options: str) -> AsyncIterator[str]:
    """gunicorn with our application; yields its URL."""
    command = (
        sys.executable, "-m", "gunicorn", "-b", f"127.0.0.1:{port}", "--chdir", str(HERE), "--no-control-socket",
        *options, "green_app:app",
    )  # fmt: skip
    environment = {**os.environ, "EMULATOR_URL": server.base_url}
    async with running(*command, env=environment, stderr=asyncio.subprocess.DEVNULL) as process:
        async with asyncio.timeout(30):
            while True:
                try:
                    _, writer = await asyncio.open_connection("127.0.0.1", port)
                except OSError:
                    await asyncio.sleep(0.05)
                else:
                    writer.close()
                    break
        yield f"http://127.0.0.1:{port}"
        process.terminate()
        assert await process.wait() == 0


async def run(python: str, script: str) -> tuple[str, str]:
    done = await asyncio.to_thread(
        subprocess.run, [python, "-c", script], capture_output=True, text=True, timeout=50, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout, done.stderr


class TestGevent:
    @pytest.fixture(autouse=True)
    def needs_gevent(self) -> None:
        pytest.importorskip("gevent", reason="needs gevent")

    @pytest.mark.parametrize("worker", ["gevent", "gthread"])
    async def test_two_sessions_in_a_worker_of_gunicorn(
        self, server: Emulator, create, unused_tcp_port: int, worker: str
    ) -> None:
        pytest.importorskip("gunicorn", reason="needs gunicorn")
        ids = [create() for _ in range(40)]
        async with (
            gunicorn(server, unused_tcp_port, "-k", worker, "--threads", "20") as url,
            aiohttp.ClientSession() as client,
        ):

            async def ask(name: str) -> str:
                async with client.get(f"{url}/{name}") as response:
                    return await response.text()

            answers = await asyncio.gather(*(ask(name) for name in ids))
        assert {" ".join(sorted(answer.split())) for answer in answers} == {
            "False cancelled cancelled in_progress not_found"
        }

    async def test_many_greenlets_share_two_sessions(self, server: Emulator, create, python: str) -> None:
        ids = [create() for _ in range(200)]
        script = f"""
from gevent import monkey; monkey.patch_all()
import asyncio, gevent, os, time
from openai_cancel import Session

def runs() -> bool:
    try:
        return bool(asyncio.get_running_loop())
    except RuntimeError:
        return False

def key():
    assert not runs()
    return {KEY!r}

ticks = 0
def tick():
    global ticks
    while True:
        ticks += 1
        time.sleep(0.001)

ids = {ids!r}
url = {server.base_url.replace("127.0.0.1", "localhost")!r}
ticking = gevent.spawn(tick)
with Session(api_key=key, base_url=url) as first, Session(api_key={KEY!r}, base_url=url) as second:
    def work(number):
        for name in ids[number * 10 : (number + 1) * 10]:
            assert (first, second)[number % 2].cancel(name).status == "cancelled"
            assert not runs()
    workers = [gevent.spawn(work, number) for number in range(20)]
    gevent.joinall(workers, raise_error=True)
    ticking.kill()
    print(ticks > 10, sum(outcome.stopped for outcome in second.stop_many(iter(ids))))
for _ in range(10):
    with Session(api_key=key, base_url=url) as session:
        session.retrieve(ids[0])
while os.path.isdir("/proc/self/task") and len(os.listdir("/proc/self/task")) > 1:
    time.sleep(0.01)
"""
        assert await run(python, script) == ("True 200\n", "")

    async def test_a_greenlet_that_is_killed_stops_what_it_guards(self, server: Emulator, create, python: str) -> None:
        name = create()
        script = f"""
from gevent import monkey; monkey.patch_all()
import gevent, time
from openai_cancel import Session
with Session(api_key={KEY!r}, base_url={server.base_url!r}) as session:
    def work():
        with session.guard({name!r}) as guard:
            guards.append(guard)
            while True:
                time.sleep(0.05)
    guards = []
    worker = gevent.spawn(work)
    while not guards:
        time.sleep(0.001)
    worker.kill()
    print(guards[0].outcome.verdict)
"""
        assert await run(python, script) == ("cancelled\n", "")


class TestEventlet:
    """gunicorn has no worker of it any more."""

    @pytest.fixture(autouse=True)
    def needs_eventlet(self) -> None:
        pytest.importorskip("eventlet", reason="needs eventlet")

    async def test_a_session_refuses_and_says_what_to_do(self, python: str) -> None:
        script = f"""
import warnings
warnings.simplefilter("ignore")
import os
os.environ["EVENTLET_NO_GREENDNS"] = "yes"  # dnspython imports trio, which needs real sockets
import eventlet; eventlet.monkey_patch()
from openai_cancel import Session, SessionStateError
session = Session(api_key={KEY!r})
try:
    session.open()
except SessionStateError as error:
    print(error)
session.close()
"""
        said, _ = await run(python, script)
        assert said.startswith("eventlet has replaced threads, and a blocking session needs a real one")
        assert "gthread" in said
