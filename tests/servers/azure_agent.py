"""Microsoft's server for the Responses protocol, with an agent that does as the input says: run, completed, failed,
incomplete.

It listens on a free port of this machine, which it writes into the file that is its argument.
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
    told = await context.get_input_text()
    stream = ResponseEventStream(response_id=context.response_id, request=request)
    yield stream.emit_created()
    yield stream.emit_in_progress()
    if told == "failed":
        raise RuntimeError("told to fail")
    if told == "run":
        await cancellation_signal.wait()
        return
    for event in stream.output_item_message("done"):
        yield event
    yield stream.emit_incomplete(reason="max_output_tokens") if told == "incomplete" else stream.emit_completed()


with socket.create_server(("127.0.0.1", 0)) as free:
    port = free.getsockname()[1]
Path(sys.argv[1]).with_suffix(".new").write_text(str(port))
Path(sys.argv[1]).with_suffix(".new").rename(sys.argv[1])
app.run(host="127.0.0.1", port=port)
