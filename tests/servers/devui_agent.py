"""Run Microsoft's DevUI for agent-framework: `devui_agent.py FILE`.

It listens on a free port, and writes the port to FILE. If the input contains the word "run", its agent runs until it is
cancelled; otherwise it ends at once. Requests must have the key in DEVUI_AUTH_TOKEN.
"""

import asyncio
import socket
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import uvicorn
from agent_framework import AgentResponseUpdate, Content
from agent_framework_devui import DevServer


class Agent:
    id = "agent"
    name = "Agent"
    description = "Does what the input says."

    async def run(self, messages: Any = None, **_: Any) -> AsyncIterator[AgentResponseUpdate]:
        if "run" in getattr(messages, "text", str(messages)):
            await asyncio.Event().wait()
        yield AgentResponseUpdate(contents=[Content.from_text("done")], role="assistant")


server = DevServer(host="127.0.0.1", ui_enabled=False)
server.set_pending_entities([Agent()])

with socket.create_server(("127.0.0.1", 0)) as free:
    port = free.getsockname()[1]
Path(sys.argv[1]).with_suffix(".new").write_text(str(port))
Path(sys.argv[1]).with_suffix(".new").rename(sys.argv[1])
uvicorn.run(server.get_app(), host="127.0.0.1", port=port)
