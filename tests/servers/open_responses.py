"""A server of the Open Responses API, with an agent that does as the input says: run, completed, failed, incomplete.

It listens on a free port of this machine, which it writes into the file that is its argument. If the environment has
an `OPEN_RESPONSES_API_KEY`, it asks for that.
"""

import asyncio
import os
import socket
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import uvicorn
from fastresponses import AdapterEvent, AgentAdapter, AgentRun, Incomplete, TextDelta, create_app


class Agent(AgentAdapter):
    async def run(self, run: AgentRun) -> AsyncIterator[AdapterEvent]:
        told = run.new_items[-1].text()
        if told == "failed":
            raise RuntimeError("told to fail")
        if told == "run":
            await asyncio.Event().wait()
        yield TextDelta("done")
        if told == "incomplete":
            yield Incomplete()


app = create_app(Agent(), api_key=os.environ.get("OPEN_RESPONSES_API_KEY"))

with socket.create_server(("127.0.0.1", 0)) as free:
    port = free.getsockname()[1]
Path(sys.argv[1]).with_suffix(".new").write_text(str(port))
Path(sys.argv[1]).with_suffix(".new").rename(sys.argv[1])
uvicorn.run(app, host="127.0.0.1", port=port)
