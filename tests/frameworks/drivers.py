"""Ways to create a background response and to wait for it: the official client's own, and those of agent frameworks."""

import asyncio
import importlib
import time
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import attrs
import openai

QUESTION: dict[str, Any] = {"model": "gpt-5", "input": "How much wood?", "background": True}
ACTIVE = {"queued", "in_progress"}
EVERY = 0.05
"""Seconds between polls."""

Step = Callable[[], bool]
"""Called by the code that consumes polls or events, each time. It may raise, or return True to leave early."""


@attrs.frozen
class Driver:
    """A way to create a background response and to wait for it.

    Attributes:
        run: creates it with a client and waits for it. A coroutine function, unless it blocks.
        streams: whether it reads a stream. If not, it polls.
        steps: whether its consumer is ours, which calls the step.
        blocks: whether it takes a blocking client.
        dies: whether it is also run in a process of its own, which a signal ends.
        framework: the module of the framework that it needs.
        has_tool: whether it is an agent with a tool, which creates a response of its own, and calls the step.
        client: makes the client from an address.
        guards: returns what is guarded: the client, or the httpx client that a framework was given.
    """

    run: Callable[[Any, Step], Any]
    streams: bool = False
    steps: bool = True
    blocks: bool = False
    dies: bool = False
    framework: str = ""
    has_tool: bool = False
    client: Callable[..., Any] = openai.AsyncOpenAI
    guards: Callable[[Any], Any] = lambda client: client


def _httpx_client(**options: Any) -> openai.AsyncOpenAI:
    import httpx

    return openai.AsyncOpenAI(http_client=httpx.AsyncClient(), **options)


def _aiohttp_client(**options: Any) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(http_client=openai.DefaultAioHttpClient(), **options)


def _blocking_client(**options: Any) -> openai.OpenAI:
    """Return a client whose requests end soon after another thread has closed it, which does not wake them."""
    return openai.OpenAI(timeout=15, **options)


async def poll(client: openai.AsyncOpenAI, name: str, step: Step) -> None:
    while not step():
        await asyncio.sleep(EVERY)
        if (await client.responses.retrieve(name)).status not in ACTIVE:
            return


async def create(client: openai.AsyncOpenAI, step: Step) -> None:
    created = await client.responses.create(**QUESTION)
    await poll(client, created.id, step)


async def stream(client: openai.AsyncOpenAI, step: Step) -> None:
    async for _ in await client.responses.create(**QUESTION, stream=True):
        if step():
            break


async def stream_helper(client: openai.AsyncOpenAI, step: Step) -> None:
    async with client.responses.stream(**QUESTION) as events:
        async for _ in events:
            if step():
                break


async def resumed_stream(client: openai.AsyncOpenAI, step: Step) -> None:
    created = await client.responses.create(**QUESTION, stream=True)
    first = await anext(aiter(created))
    await created.close()
    async for _ in await client.responses.retrieve(first.response.id, stream=True, starting_after=0):
        if step():
            break


async def parse(client: openai.AsyncOpenAI, step: Step) -> None:
    created = await client.responses.parse(**QUESTION)
    await poll(client, created.id, step)


async def raw_response(client: openai.AsyncOpenAI, step: Step) -> None:
    answer = await client.responses.with_raw_response.create(**QUESTION)
    await poll(client, answer.parse().id, step)


async def raw_stream(client: openai.AsyncOpenAI, step: Step) -> None:
    answer = await client.responses.with_raw_response.create(**QUESTION, stream=True)
    async for _ in answer.parse():
        if step():
            break


async def streaming_response(client: openai.AsyncOpenAI, step: Step) -> None:
    async with client.responses.with_streaming_response.create(**QUESTION) as answer:
        created = await answer.parse()
    await poll(client, created.id, step)


async def lines_of_a_streaming_response(client: openai.AsyncOpenAI, step: Step) -> None:
    async with client.responses.with_streaming_response.create(**QUESTION, stream=True) as answer:
        async for _ in answer.iter_lines():
            if step():
                break


async def with_options(client: openai.AsyncOpenAI, step: Step) -> None:
    await create(client.with_options(timeout=30), step)


def blocking_create(client: openai.OpenAI, step: Step) -> None:
    created = client.responses.create(**QUESTION)
    while not step():
        time.sleep(EVERY)
        if client.responses.retrieve(created.id).status not in ACTIVE:
            return


def blocking_stream(client: openai.OpenAI, step: Step) -> None:
    for _ in client.responses.create(**QUESTION, stream=True):
        if step():
            break


async def pydantic_ai(client: openai.AsyncOpenAI, _: Step) -> None:
    await _pydantic_agent(client).run("How much wood?")


async def pydantic_ai_tool(client: openai.AsyncOpenAI, step: Step) -> None:
    agent = _pydantic_agent(client)

    @agent.tool_plain
    async def measure() -> str:
        """Measure the wood."""
        return await create(client, step)

    await agent.run("How much wood?")


async def pydantic_ai_stream(client: openai.AsyncOpenAI, step: Step) -> None:
    async with _pydantic_agent(client).run_stream("How much wood?") as result:
        async for _ in result.stream_text(delta=True, debounce_by=None):
            if step():
                break


def _pydantic_agent(client: openai.AsyncOpenAI) -> Any:
    from pydantic_ai import Agent
    from pydantic_ai.models.openai import OpenAIResponsesModel, OpenAIResponsesModelSettings
    from pydantic_ai.providers.openai import OpenAIProvider

    model = OpenAIResponsesModel("gpt-5", provider=OpenAIProvider(openai_client=client))
    return Agent(model, model_settings=OpenAIResponsesModelSettings(openai_background=True))


async def agno(client: openai.AsyncOpenAI, _: Step) -> None:
    from agno.agent import Agent
    from agno.models.openai import OpenAIResponses

    model = OpenAIResponses(id="gpt-5", async_client=client, background=True, background_poll_interval=EVERY)
    _raise_error(await Agent(model=model, telemetry=False).arun("How much wood?"))


async def agno_tool(client: openai.AsyncOpenAI, step: Step) -> None:
    from agno.agent import Agent
    from agno.exceptions import StopAgentRun
    from agno.models.openai import OpenAIResponses

    async def measure() -> str:
        """Measure the wood."""
        try:
            return await create(client, step)
        except Exception as error:
            raise StopAgentRun(error) from error  # it tells the model of any other one

    model = OpenAIResponses(id="gpt-5", async_client=client, background=True, background_poll_interval=EVERY)
    await Agent(model=model, tools=[measure], telemetry=False).arun("How much wood?")


def agno_blocking(client: openai.OpenAI, _: Step) -> None:
    from agno.agent import Agent
    from agno.models.openai import OpenAIResponses

    model = OpenAIResponses(
        id="gpt-5", client=client, background=True, background_poll_interval=EVERY, background_max_wait=1.5
    )
    _raise_error(Agent(model=model, telemetry=False).run("How much wood?"))


def _raise_error(output: Any) -> None:
    """Raise an exception in place of the status: agno's agents return their errors."""
    if output.status.value == "ERROR":
        raise RuntimeError(output.content)


async def agent_framework(client: openai.AsyncOpenAI, step: Step) -> None:
    agent = _framework_agent(client)
    answer = await agent.run("How much wood?", options={"background": True})
    while answer.continuation_token is not None and not step():
        await asyncio.sleep(EVERY)
        options = {"background": True, "continuation_token": answer.continuation_token}
        answer = await agent.run(options=options)


async def agent_framework_stream(client: openai.AsyncOpenAI, step: Step) -> None:
    async for _ in _framework_agent(client).run("How much wood?", stream=True, options={"background": True}):
        if step():
            break


async def agent_framework_tool(client: openai.AsyncOpenAI, step: Step) -> None:
    async def measure() -> str:
        """Measure the wood."""
        return await create(client, step)

    # It tells the model of the exception, creates one more response, and returns at once.
    await _framework_agent(client, measure).run("How much wood?", options={"background": True})


def _framework_agent(client: openai.AsyncOpenAI, *tools: Any) -> Any:
    from agent_framework import Agent
    from agent_framework.openai import OpenAIChatClient

    return Agent(client=OpenAIChatClient(async_client=client, model="gpt-5"), tools=[*tools])


async def openai_agents(client: openai.AsyncOpenAI, step: Step) -> None:
    from agents import Runner

    result = await Runner.run(_openai_agent(client), "How much wood?", run_config=_untraced())
    # It returns at once, with an empty output.
    await poll(client, result.raw_responses[-1].response_id, step)


async def openai_agents_tool(client: openai.AsyncOpenAI, step: Step) -> None:
    from agents import Runner, function_tool

    @function_tool(failure_error_function=None)
    async def measure() -> str:
        """Measure the wood."""
        return await create(client, step)

    agent = _openai_agent(client)
    agent.tools.append(measure)
    await Runner.run(agent, "How much wood?", run_config=_untraced())


async def openai_agents_stream(client: openai.AsyncOpenAI, step: Step) -> None:
    from agents import Runner

    result = Runner.run_streamed(_openai_agent(client), "How much wood?", run_config=_untraced())
    async for event in result.stream_events():
        if event.type == "raw_response_event" and step():
            break


def _openai_agent(client: openai.AsyncOpenAI) -> Any:
    from agents import Agent, ModelSettings, OpenAIResponsesModel

    settings = ModelSettings(extra_args={"background": True})
    return Agent("forester", model=OpenAIResponsesModel("gpt-5", client), model_settings=settings)


def _untraced() -> Any:
    from agents import RunConfig

    return RunConfig(tracing_disabled=True)


async def langchain(client: openai.AsyncOpenAI, step: Step) -> None:
    message = await _langchain_model(client).ainvoke("How much wood?")
    # It returns at once, with an empty message.
    await poll(client, message.response_metadata["id"], step)


async def langchain_stream(client: openai.AsyncOpenAI, step: Step) -> None:
    async for _ in _langchain_model(client).astream("How much wood?"):
        if step():
            break


def _langchain_model(client: openai.AsyncOpenAI) -> Any:
    from langchain_openai import ChatOpenAI

    return ChatOpenAI(
        model="gpt-5",
        api_key=client.api_key,
        base_url=str(client.base_url),
        use_responses_api=True,
        model_kwargs={"background": True},
        http_async_client=_http(client),
    )


def _http(client: openai.AsyncOpenAI) -> Any:
    """Return the httpx client of a client, which is given to a framework as its own."""
    return client._client


def import_frameworks() -> None:
    """Import them all, or none: where the official client is tested in another version."""
    if HAS_FRAMEWORKS:
        for driver in DRIVERS.values():
            if driver.framework:
                importlib.import_module(driver.framework)


HAS_FRAMEWORKS = find_spec("pydantic_ai") is not None

BLOCKS: dict[str, Any] = {"blocks": True, "client": _blocking_client}
PYDANTIC_AI = {"framework": "pydantic_ai.models.openai"}
AGNO = {"framework": "agno.models.openai"}
AGENT_FRAMEWORK = {"framework": "agent_framework.openai"}
OPENAI_AGENTS = {"framework": "agents"}
LANGCHAIN = {"framework": "langchain_openai"}
DRIVERS = {
    "create": Driver(create, dies=True),
    "create (httpx)": Driver(create, client=_httpx_client),
    "create (aiohttp)": Driver(create, client=_aiohttp_client),
    "stream=True": Driver(stream, streams=True, dies=True),
    "stream=True (httpx)": Driver(stream, streams=True, client=_httpx_client),
    "stream=True (aiohttp)": Driver(stream, streams=True, client=_aiohttp_client, dies=True),
    "retrieve(stream=True)": Driver(resumed_stream, streams=True),
    ".stream()": Driver(stream_helper, streams=True),
    ".parse()": Driver(parse),
    "with_raw_response": Driver(raw_response),
    "with_raw_response, stream=True": Driver(raw_stream, streams=True),
    "with_streaming_response": Driver(streaming_response),
    "with_streaming_response, stream=True": Driver(lines_of_a_streaming_response, streams=True),
    "with_options": Driver(with_options),
    "OpenAI": Driver(blocking_create, dies=True, **BLOCKS),
    "OpenAI, stream=True": Driver(blocking_stream, streams=True, dies=True, **BLOCKS),
    "pydantic-ai": Driver(pydantic_ai, **PYDANTIC_AI, steps=False, dies=True),
    "pydantic-ai, tool": Driver(pydantic_ai_tool, **PYDANTIC_AI, has_tool=True),
    "pydantic-ai, run_stream": Driver(pydantic_ai_stream, **PYDANTIC_AI, streams=True),
    "agno": Driver(agno, **AGNO, steps=False, dies=True),
    "agno, tool": Driver(agno_tool, **AGNO, has_tool=True),
    "agno, blocking": Driver(agno_blocking, **AGNO, steps=False, **BLOCKS),
    "agent-framework": Driver(agent_framework, **AGENT_FRAMEWORK),
    "agent-framework, tool": Driver(agent_framework_tool, **AGENT_FRAMEWORK, has_tool=True),
    "agent-framework, stream": Driver(agent_framework_stream, **AGENT_FRAMEWORK, streams=True, dies=True),
    "openai-agents": Driver(openai_agents, **OPENAI_AGENTS),
    "openai-agents, tool": Driver(openai_agents_tool, **OPENAI_AGENTS, has_tool=True),
    "openai-agents, run_streamed": Driver(openai_agents_stream, **OPENAI_AGENTS, streams=True, dies=True),
    "langchain": Driver(langchain, **LANGCHAIN, guards=_http, dies=True),
    "langchain, astream": Driver(langchain_stream, **LANGCHAIN, streams=True, guards=_http),
}
