"""Measure what a guard of a client costs the client: for a creation, for a long stream, and for other requests.

    python -m pip install -e '.[test]'
    python tests/benchmarks/clients.py           # takes a minute

A server in a process of its own answers at once. The figures are processor time of the measured process, the best of
some rounds in which the guarded and the plain client take turns.
"""

import asyncio
import contextlib
import gc
import json
import multiprocessing
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import openai
from aiohttp import web

sys.path.insert(0, str(Path(__file__).parents[1]))

from openai_cancel import AsyncSession

CREATIONS = 300
EVENTS = 5_000
ROUNDS = 8
REQUEST: dict[str, Any] = {"model": "m", "input": "hi", "background": True}
DOCUMENT = {"id": "resp_1", "object": "response", "status": "queued", "background": True, "output": [], "tools": []}


async def answer(request: web.Request) -> web.StreamResponse:
    """Answer a creation, or any other request."""
    if request.method != "POST":
        return web.json_response({"object": "list", "data": []})
    if not (await request.json()).get("stream"):
        return web.json_response(DOCUMENT)
    stream = web.StreamResponse(headers={"content-type": "text/event-stream"})
    await stream.prepare(request)
    for number in range(EVENTS):
        kind = "response.output_text.delta" if number else "response.created"
        event = {"type": kind, "sequence_number": number, "response": DOCUMENT} if not number else {
            "type": kind, "sequence_number": number, "item_id": "msg_1", "output_index": 0, "content_index": 0,
            "delta": "some text", "logprobs": [],
        }  # fmt: skip
        await stream.write(f"event: {kind}\ndata: {json.dumps(event)}\n\n".encode())
        if number % 8 == 0:
            await asyncio.sleep(0)
    return stream


def serve(port: "multiprocessing.Queue[int]") -> None:
    async def main() -> None:
        app = web.Application()
        app.router.add_route("*", "/{path:.*}", answer)
        runner = web.AppRunner(app)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        port.put(runner.addresses[0][1])
        await asyncio.Event().wait()

    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(main())


async def create(client: openai.AsyncOpenAI) -> None:
    await client.responses.create(**REQUEST)


async def read(client: openai.AsyncOpenAI) -> None:
    async for _ in await client.responses.create(**REQUEST, stream=True):
        pass


async def other(client: openai.AsyncOpenAI) -> None:
    await client.models.list()


async def measure(what: Callable[[Any], Awaitable[None]], client: Any, times: int) -> float:
    """Return the processor time of one call in microseconds."""
    gc.collect()
    gc.disable()
    began = time.process_time()
    for _ in range(times):
        await what(client)
    took = time.process_time() - began
    gc.enable()
    return took / times * 1e6


async def main(base_url: str) -> None:
    async with (
        openai.AsyncOpenAI(api_key="any", base_url=base_url) as client,
        AsyncSession(api_key="any", base_url=base_url) as session,
    ):
        await create(client)
        for what, times, unit in ((create, CREATIONS, 1), (read, 1, EVENTS), (other, CREATIONS, 1)):
            plain, guarded = [], []
            for _ in range(ROUNDS):
                plain.append(await measure(what, client, times) / unit)
                async with session.guard(client):
                    guarded.append(await measure(what, client, times) / unit)
            before, after = min(plain), min(guarded)
            print(f"{what.__name__:7} {before:8.1f} µs, guarded {after:8.1f} µs: "
                  f"{after - before:+6.1f} µs, {(after / before - 1) * 100:+5.1f} %")  # fmt: skip


if __name__ == "__main__":
    ports: "multiprocessing.Queue[int]" = multiprocessing.Queue()
    server = multiprocessing.Process(target=serve, args=(ports,), daemon=True)
    server.start()
    asyncio.run(main(f"http://127.0.0.1:{ports.get()}/v1"))
    server.kill()
