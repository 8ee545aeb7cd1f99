"""Run Microsoft's server for the Responses protocol: `azure_agent.py FILE`.

It listens on a free port, and writes the port to FILE. The input of a request tells its agent what to do: run,
completed, failed, incomplete, or `talk for N s`. When it has talked, it writes the time to a file beside FILE.
"""

import asyncio
import socket
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path

from azure.ai.agentserver.responses import (
    CreateResponse,
    ResponseContext,
    ResponseEventStream,
    ResponsesAgentServerHost,
)

app = ResponsesAgentServerHost()
PIECES = 120


async def talk(stream: ResponseEventStream, seconds: float) -> AsyncIterator[object]:
    """Yield the events of a text that takes that long."""
    item = stream.add_output_item_message()
    yield item.emit_added()
    text = item.add_text_content()
    yield text.emit_added()
    for number in range(PIECES):
        yield text.emit_delta(f" {number}")
        await asyncio.sleep(seconds / PIECES)
    yield text.emit_text_done()
    yield text.emit_done()
    yield item.emit_done()


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
    if instruction.startswith("talk for "):
        async for event in talk(stream, float(instruction.split()[2])):
            yield event
        Path(sys.argv[1]).with_name(f"{context.response_id}.ended").write_text(str(time.time()))
        yield stream.emit_completed()
        return
    for event in stream.output_item_message("done"):
        yield event
    yield stream.emit_incomplete(reason="max_output_tokens") if instruction == "incomplete" else stream.emit_completed()


with socket.create_server(("127.0.0.1", 0)) as free:
    port = free.getsockname()[1]
Path(sys.argv[1]).with_suffix(".new").write_text(str(port))
Path(sys.argv[1]).with_suffix(".new").rename(sys.argv[1])
app.run(host="127.0.0.1", port=port)
