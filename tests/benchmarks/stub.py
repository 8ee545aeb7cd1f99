"""A server that answers every request at once with the same body, to measure clients against.

    python tests/benchmarks/stub.py BYTES

It prints its base URL, and runs until it is killed or its standard input ends. It looks only for the end of the
headers, so requests must not have a body.
"""

import asyncio
import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from openai_cancel.emulator import Script, Work

END = b"\r\n\r\n"


def body(size: int) -> bytes:
    """Return a cancelled response of about `size` bytes, most of them in many short messages."""
    request = {"model": "gpt-4o-2024-08-06", "background": True, "metadata": {"tenant": "a", "job": "b"}}
    work = Work(request=request, script=Script(runs_for=0, says="It depicts a wooden boardwalk. " * 8), started=1.7e9)
    document = work.document(2e9) | {"status": "cancelled"}
    message = document["output"][-1]
    while len(encoded := json.dumps(document).encode()) + len(json.dumps(message)) < size:
        missing = (size - len(encoded)) // (len(json.dumps(message)) + 2)
        document["output"] += [message] * max(1, missing)
    return encoded


class Stub(asyncio.Protocol):
    """A connection."""

    def __init__(self, answer: bytes) -> None:
        self._answer = answer
        self._rest = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        requests = (self._rest + data).split(END)
        self._rest = requests[-1]
        self._transport.write(self._answer * (len(requests) - 1))


async def serve(size: int) -> None:
    content = body(size)
    head = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nx-request-id: req_1\r\nContent-Length: %d"
    answer = head % len(content) + END + content
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: Stub(answer), "127.0.0.1", 0, backlog=4096)
    print(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1", flush=True)
    ended = asyncio.Event()
    loop.add_reader(0, ended.set)
    await ended.wait()


@contextlib.contextmanager
def running(size: int) -> Iterator[str]:
    """Run a stub in another process, on the last core, and keep this process off that core. Yield its base URL."""
    *others, last = sorted(os.sched_getaffinity(0))
    process = subprocess.Popen(
        [sys.executable, str(Path(__file__)), str(size)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    os.sched_setaffinity(process.pid, {last})
    if others:
        os.sched_setaffinity(0, others[-1:])
    with process:
        assert process.stdout
        yield process.stdout.readline().strip()
        process.kill()
    os.sched_setaffinity(0, {*others, last})


if __name__ == "__main__":
    asyncio.run(serve(int(sys.argv[1])))
