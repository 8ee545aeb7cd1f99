"""Run Microsoft's server for the Responses protocol: `azure_agent.py FILE`.

It listens on a free port, and writes the port to FILE. The input of a request tells its agent what to do: run,
completed, failed or incomplete.
"""

import asyncio
import socket
import sys
from collections.abc import AsyncIterator
from pathlib import Path

from azure.ai.agentserver.responses import (
    CreateResponse,
    ResponseContext,
    ResponseEventStream,
    ResponsesAgentServerHost,
)

app = ResponsesAgentServerHost()


@app.response_handler
async def agent(
    request: CreateResponse, context: ResponseContext, cancellation_signal: asyncio.Event
) -> AsyncIterator[object]:
    instruction = await context.get_input_text()
    stream = ResponseEventStream(response_id=context.response_id, request=request)
    yield stream.emit_created()
    yield stream.emit_in_progress()
    if instruction == "failed":
        raise RuntimeError("told to fail")
    if instruction == "run":
        await cancellation_signal.wait()
        return
    for event in stream.output_item_message("done"):
        yield event
    yield stream.emit_incomplete(reason="max_output_tokens") if instruction == "incomplete" else stream.emit_completed()


with socket.create_server(("127.0.0.1", 0)) as free:
    port = free.getsockname()[1]
Path(sys.argv[1]).with_suffix(".new").write_text(str(port))
Path(sys.argv[1]).with_suffix(".new").rename(sys.argv[1])
app.run(host="127.0.0.1", port=port)
