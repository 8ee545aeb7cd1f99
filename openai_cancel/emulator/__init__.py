"""A server of the Responses API that runs no model: for demonstrations, tests, and work without a network or a key.

# In tests

`Emulator` is a server on a free port of this machine. Append to its `faults` to make requests fail, and read `received`
to see the requests that arrived. `Fault(cut="body", cut_after=100)` closes the connection after 100 bytes of an answer
or a stream.

```python
import asyncio

from openai_cancel import AsyncSession
from openai_cancel.emulator import Emulator, Fault


async def main() -> None:
    async with Emulator() as server, AsyncSession(base_url=server.base_url, api_key="any") as session:
        running = server.add()
        server.faults.append(Fault(status=503, headers={"retry-after-ms": "10"}))
        response = await session.cancel(running)  # retried after 10 ms
        assert response.status == "cancelled"


asyncio.run(main())
```

With pytest, no setup is needed. The fixture `openai_emulator` starts a server for each test, sync or async, and points
`OPENAI_BASE_URL` and `OPENAI_API_KEY` to it. `@pytest.mark.openai_emulator(dialect="vllm")` passes options to the
emulator. See `openai_cancel.pytest_plugin`.

To test retries and polling without real waits, pass a subclass of `openai_cancel.Clock` as the `clock=` of a session.
It replaces the monotonic time, the sleeps and the random numbers of the session. Timeouts of requests do not use it.

# As a process

`openai-cancel emulate --port 8080` runs the emulator for any client. The `metadata` of a request that creates a
response controls its course: `queued_for`, `runs_for`, `becomes`, `says` and `resumes_after`, as in `Script`.

```sh
export OPENAI_BASE_URL=http://127.0.0.1:8080/v1 OPENAI_API_KEY=any
curl $OPENAI_BASE_URL/responses -H "Authorization: Bearer any" -H "Content-Type: application/json" \
    -d '{"model": "any", "input": "hi", "background": true, "metadata": {"runs_for": "600"}}'
```

# What it plays

With `"stream": true`, it streams the text as server-sent events. `GET /responses/{id}?stream=true&starting_after=N`
follows or replays the stream of a background response.

`--dialect vllm`, or `Emulator(dialect="vllm")`, plays another server or gateway; `DIALECTS` has all of them. With the
dialects `ogx` and `azure`, `GET /responses` lists the responses.

It also serves the paths of Azure: `AsyncSession.azure(server.base_url.removesuffix("/v1"), api_key="any")`.
"""

from openai_cancel.emulator.dialects import DIALECTS, Dialect, Failure, List, Reply
from openai_cancel.emulator.faults import Fault
from openai_cancel.emulator.server import Emulator, Received
from openai_cancel.emulator.work import Script, Work

__all__ = ["DIALECTS", "Dialect", "Emulator", "Failure", "Fault", "List", "Received", "Reply", "Script", "Work"]
