"""Stop a response when its HTTP client disconnects, in an async view of Django: `uvicorn guard_django:application`."""

from collections.abc import Awaitable, Callable
from typing import Any

from django.conf import settings
from django.core.asgi import get_asgi_application
from django.http import HttpRequest, JsonResponse
from django.urls import path

from openai_cancel import AsyncSession

settings.configure(ROOT_URLCONF=__name__, ALLOWED_HOSTS=["localhost", "127.0.0.1"])
django = get_asgi_application()
sessions: list[AsyncSession] = []


async def answer(_request: HttpRequest, response_id: str) -> JsonResponse:
    """Wait for a response. If the client disconnects, Django cancels this view, and `wait` stops the response."""
    response = await sessions[-1].wait(response_id, timeout=600)
    return JsonResponse({"status": response.status, "text": response.output_text})


urlpatterns = [path("answers/<response_id>", answer)]


async def application(
    scope: Any, receive: Callable[[], Awaitable[Any]], send: Callable[[Any], Awaitable[None]]
) -> None:
    """Keep one session open while the server runs. Django has no lifespan of its own."""
    if scope["type"] != "lifespan":
        await django(scope, receive, send)
        return
    async with AsyncSession() as session:
        sessions.append(session)
        await receive()
        await send({"type": "lifespan.startup.complete"})
        await receive()
    await send({"type": "lifespan.shutdown.complete"})
