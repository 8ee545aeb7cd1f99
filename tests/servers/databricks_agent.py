"""Run Databricks' server of long-running agents: `databricks_agent.py FILE`.

It listens on a free port, and writes the port to FILE. The input of a request tells its agent what to do: run,
completed or failed. DATABASE is the SQLAlchemy URL of a PostgreSQL database.
"""

import asyncio
import os
import socket
import sys
from pathlib import Path
from typing import Any

import uvicorn
from databricks_ai_bridge.long_running import LongRunningAgentServer, db
from mlflow.genai.agent_server import invoke
from mlflow.types.responses import ResponsesAgentRequest, ResponsesAgentResponse
from sqlalchemy.ext.asyncio import create_async_engine


class Database:
    """Any database, in place of one in Databricks' cloud."""

    def __init__(self, **_: Any) -> None:
        self.engine = create_async_engine(os.environ["DATABASE"])


os.environ["LAKEBASE_INSTANCE_NAME"] = "local"  # enables the background mode
db.AsyncLakebaseSQLAlchemy = Database


@invoke()
async def agent(request: ResponsesAgentRequest) -> ResponsesAgentResponse:
    instruction = request.input[-1].content
    if instruction == "failed":
        raise RuntimeError("told to fail")
    if instruction == "run":
        await asyncio.Event().wait()
    return ResponsesAgentResponse(output=[])


server = LongRunningAgentServer()

with socket.create_server(("127.0.0.1", 0)) as free:
    port = free.getsockname()[1]
Path(sys.argv[1]).with_suffix(".new").write_text(str(port))
Path(sys.argv[1]).with_suffix(".new").rename(sys.argv[1])
uvicorn.run(server.app, host="127.0.0.1", port=port)
