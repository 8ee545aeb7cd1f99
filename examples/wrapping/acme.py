"""A library that wraps a session: its users ask questions, and nothing that it starts outlives their tasks."""

from contextlib import AsyncExitStack
from types import TracebackType
from typing import Self

import aiohttp
import openai

from openai_cancel import APIStatusError, AsyncSession, Outcome, Response


class NoAnswerError(Exception):
    """The question has no answer."""


def text_of(response: Response) -> str:
    """Return the answer, or raise a NoAnswerError."""
    if response.status != "completed":
        raise NoAnswerError(response.error.message if response.error else f"It is {response.status}.")
    return response.output_text


def advice(outcome: Outcome) -> str:
    """Return what to tell the user about a response that was to be stopped."""
    if outcome.stopped:
        return "It costs nothing any more."
    if isinstance(outcome.error, APIStatusError) and outcome.error.retry_after:
        return f"Try again in {outcome.error.retry_after:g} s."
    return f"Ask the operators about {outcome.response_id}."


class Acme:
    """Asks questions for a team, whose name a middleware sends with each request of the session."""

    def __init__(self, client: openai.AsyncOpenAI, *, team: str) -> None:
        self._client = client
        self._team = team

    async def __aenter__(self) -> Self:
        async with AsyncExitStack() as opened:
            http = await opened.enter_async_context(aiohttp.ClientSession(middlewares=[self._sign]))
            session = AsyncSession.from_openai(self._client, client_session=http)
            self._session = await opened.enter_async_context(session)
            self._opened = opened.pop_all()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._opened.aclose()

    async def _sign(self, request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType) -> aiohttp.ClientResponse:
        request.headers["X-Team"] = self._team
        return await handler(request)

    async def ask(self, question: str, *, timeout: float) -> str:
        """Return the answer to a question. If it takes too long, or the task is cancelled, the response is stopped."""
        async with self._session.guard(self._client):
            created = await self._client.responses.create(model="gpt-5", input=question, background=True)
            return text_of(await self._session.wait(created, timeout=timeout))

    async def stop(self, response_id: str) -> str:
        """Stop a response, and return what to tell the user."""
        return advice(await self._session.stop(response_id))
