"""Servers that know which responses run: an emulator, or a real one behind a gateway that plays the same faults."""

import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, Protocol

import aiohttp
from aiohttp import web

from openai_cancel.emulator import Emulator, Fault, Script

# Streams send a word every 0.1 s, for longer than anything waits.
SCRIPT = Script(runs_for=120, says="A woodchuck would chuck " * 300)


class Server(Protocol):
    """A server for one run.

    Attributes:
        base_url: its address.
        faults: the faults that will strike, each once.
        received: the requests that have arrived.
    """

    base_url: str
    faults: list[Fault]
    received: Sequence[Any]

    @property
    def created(self) -> list[str]:
        """The ids of the responses that were created."""
        ...

    async def running(self) -> list[str]:
        """Return the ids of the responses that run."""
        ...


class EmulatedServer(Emulator):
    """An emulator. See `Server`."""

    @property
    def created(self) -> list[str]:
        return [*self.responses]

    async def running(self) -> list[str]:
        now = self.clock()
        return [name for name, work in self.responses.items() if work.is_active(now)]


@asynccontextmanager
async def emulated() -> AsyncIterator[Server]:
    """Run an emulator."""
    async with EmulatedServer(script=SCRIPT) as server:
        yield server


class Gateway:
    """A gateway in front of a real server, which is asked for the state of what was created here. See `Server`.

    Args:
        server_url: the base URL of the server.
        model: the model that the server has, in place of any other.
        active: returns the ids of the responses that run, of all that are in the store of the server.
    """

    def __init__(self, server_url: str, model: str, active: Any) -> None:
        self._server_url = server_url
        self._model = model
        self._active = active
        self.faults: list[Fault] = []
        self.received: list[web.Request] = []
        self.created: list[str] = []

    async def running(self) -> list[str]:
        active = await self._active() if self.created else ()
        return [name for name in self.created if name in active]

    @asynccontextmanager
    async def serve(self) -> AsyncIterator["Gateway"]:
        app = web.Application()
        app.router.add_route("*", "/v1/{path:.*}", self._answer)
        runner = web.AppRunner(app, shutdown_timeout=0.1)
        async with aiohttp.ClientSession() as self._http:
            await runner.setup()
            await web.TCPSite(runner, "127.0.0.1", 0).start()
            self.base_url = f"http://127.0.0.1:{runner.addresses[0][1]}/v1"
            try:
                yield self
            finally:
                await runner.cleanup()

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        self.received.append(request)
        operation = _operation(request)
        body = await request.read()
        fault = next((fault for fault in self.faults if fault.on in {operation, None}), None)
        if fault is None:
            return await self._forward(operation, body, request)
        self.faults.remove(fault)
        return await fault.strike(request, partial(self._forward, operation, body))

    async def _forward(self, operation: str, body: bytes, request: web.Request) -> web.Response:
        if operation == "create":
            body = json.dumps({**json.loads(body), "model": self._model}).encode()
        headers = {"content-type": "application/json"} if body else {}
        url = self._server_url + request.path_qs.removeprefix("/v1")
        async with self._http.request(request.method, url, data=body or None, headers=headers) as answer:
            content = await answer.read()
        if operation == "create" and answer.status == 200:
            self.created.append(json.loads(content)["id"])
        return web.Response(body=content, status=answer.status, content_type=answer.content_type)


def _operation(request: web.Request) -> str:
    if request.method == "GET":
        return "retrieve"
    return "cancel" if request.path.endswith("/cancel") else "create"
