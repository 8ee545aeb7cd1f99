"""A run of `cancel`."""

import asyncio
from collections.abc import Sequence

from openai_cancel.cli.documents import to_json
from openai_cancel.cli.exit_status import ExitStatus, UsageError, exit_status
from openai_cancel.cli.ids import check_arguments
from openai_cancel.cli.output import complain, print_line, printable
from openai_cancel.errors import BadRequestError, ConflictError, OpenAICancelError
from openai_cancel.models import Response
from openai_cancel.session import AsyncSession


def cancel_responses(ids: Sequence[str], session: AsyncSession, *, as_json: bool) -> int:
    """Cancel responses one by one, print the answers, and return the exit status.

    Args:
        ids: their ids.
        session: makes the requests. It is not open yet.
        as_json: whether to print JSON lines.

    Raises:
        UsageError: one cannot be an id.
    """
    try:
        check_arguments(ids)
    except ValueError as error:
        raise UsageError(f"{error}") from error
    return asyncio.run(_cancel_all(ids, session, as_json=as_json))


async def _cancel_all(ids: Sequence[str], session: AsyncSession, *, as_json: bool) -> int:
    worst: int = ExitStatus.OK
    async with session:
        for response_id in ids:
            try:
                response, refusal = await _cancel_one(session, response_id)
            except OpenAICancelError as error:
                worst = max(worst, _show_error(response_id, error, as_json=as_json))
            else:
                worst = max(worst, _show(response_id, response, as_json=as_json, refusal=refusal))
    return worst


async def _cancel_one(session: AsyncSession, response_id: str) -> tuple[Response, str]:
    """Cancel a response.

    Returns:
        The response, and the server's message if it refused.
    """
    try:
        return await session.cancel(response_id), ""
    except (BadRequestError, ConflictError) as error:
        # Usually the response has ended already. Its status decides, because messages differ between servers.
        return await session.retrieve(response_id), error.message


def _show(response_id: str, response: Response, *, as_json: bool, refusal: str = "") -> ExitStatus:
    if as_json:
        print_line(to_json({"id": response_id, "status": response.status, "response": response.to_dict()}))
    else:
        words = f"{response.status}  ({refusal})" if refusal else response.status
        print_line(f"{response_id}  {printable(words)}")
    return ExitStatus.OK if response.is_terminal else ExitStatus.NOT_STOPPED


def _show_error(response_id: str, error: OpenAICancelError, *, as_json: bool) -> ExitStatus:
    if as_json:
        print_line(to_json({"id": response_id, "error": error.to_dict()}))
    else:
        complain(f"{response_id!r}: {error}")
    return exit_status(error)
