"""Run a server of the Open Responses API: `open_responses.py FILE`.

It listens on a free port, and writes the port to FILE. The input of a request tells its agent what to do: run,
completed, failed or incomplete. If OPEN_RESPONSES_API_KEY is set, requests must have that key.
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
        instruction = run.new_items[-1].text()
        if instruction == "failed":
            raise RuntimeError("told to fail")
        if instruction == "run":
            await asyncio.Event().wait()
        yield TextDelta("done")
        if instruction == "incomplete":
            yield Incomplete()


app = create_app(Agent(), api_key=os.environ.get("OPEN_RESPONSES_API_KEY"))

with socket.create_server(("127.0.0.1", 0)) as free:
    port = free.getsockname()[1]
Path(sys.argv[1]).with_suffix(".new").write_text(str(port))
Path(sys.argv[1]).with_suffix(".new").rename(sys.argv[1])
uvicorn.run(app, host="127.0.0.1", port=port)
