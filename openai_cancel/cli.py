"""The command `openai-cancel`.

Exit status: 0 all stopped, 1 some not, 2 usage, 3 credentials or configuration, 130 interrupted.
"""

import asyncio
import io
import json
import os
import sys
from collections.abc import Sequence
from typing import Annotated, Any

import aiohttp
import orjson

from openai_cancel.emulator import DIALECTS, Emulator, Script
from openai_cancel.errors import (
    APIStatusError,
    AuthenticationError,
    BadRequestError,
    ConfigurationError,
    ConflictError,
    InvalidResponseIdError,
    OpenAICancelError,
    PermissionDeniedError,
)
from openai_cancel.session import AsyncSession
from openai_cancel.settings import __version__

try:
    from cyclopts import App, CycloptsError, Parameter
    from cyclopts.validators import Number
    from rich.console import Console
    from rich.table import Table
except ModuleNotFoundError as missing:
    sys.stderr.write(f"openai-cancel: {missing.name} is not installed: pip install 'openai-cancel[cli]'\n")
    raise SystemExit(3) from None

OK, NOT_STOPPED, USAGE, CONFIGURATION, INTERRUPTED = 0, 1, 2, 3, 130

app = App(
    name="openai-cancel",
    version=__version__,
    help="End background responses of the OpenAI Responses API.",
    help_epilogue=(
        "Settings: OPENAI_API_KEY, OPENAI_BASE_URL, OPENAI_ORG_ID, OPENAI_PROJECT_ID, OPENAI_CUSTOM_HEADERS. "
        "Exit status: 0 all stopped, 1 some not, 2 usage, 3 credentials or configuration, 130 interrupted."
    ),
    result_action="return_value",
    suppress_keyboard_interrupt=False,
)


def main() -> None:
    """Run the command with the arguments of the process."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # whatever the encoding is, a server's words can be shown
    raise SystemExit(run(sys.argv[1:]))


def run(arguments: Sequence[str]) -> int:
    """Run the command, and return its exit status. What goes wrong is one line, never a traceback."""
    try:
        return app(arguments, exit_on_error=False, print_error=False) or OK
    except CycloptsError as error:
        return _complain(error, USAGE)
    except ConfigurationError as error:
        return _complain(error, CONFIGURATION)
    except OSError as error:
        return _complain(f"cannot write: {error.strerror}", NOT_STOPPED)
    except KeyboardInterrupt:
        return _complain("interrupted", INTERRUPTED)


@app.command
def cancel(
    ids: list[str],
    /,
    *,
    as_json: Annotated[bool, Parameter("--json", negative=())] = False,
    base_url: str | None = None,
) -> int:
    """Cancel responses, and show what became of them.

    Parameters
    ----------
    ids
        Ids of responses, one or more.
    as_json
        One JSON object a line.
    base_url
        Where the API is; else OPENAI_BASE_URL, or OpenAI's.
    """
    return asyncio.run(_cancel(ids, as_json=as_json, base_url=base_url))


async def _cancel(ids: Sequence[str], *, as_json: bool, base_url: str | None) -> int:
    status = OK
    async with AsyncSession(base_url=base_url) as session:
        for response_id in ids:
            refusal = ""
            try:
                try:
                    response = await session.cancel(response_id)
                except (BadRequestError, ConflictError) as error:
                    # Most often it is over already, which is what was wanted. Its state decides, not the words.
                    response, refusal = await session.retrieve(response_id), f"  ({error.message})"
            except OpenAICancelError as error:
                status = max(status, _exit_status(error))
                if as_json:
                    _print_json({"id": response_id, "error": _error_as_json(error)})
                else:
                    _complain(f"{response_id!r}: {error}", status)
                continue
            status = max(status, OK if response.is_terminal else NOT_STOPPED)
            if as_json:
                _print_json({"id": response_id, "status": response.status, "response": response.to_dict()})
            else:
                _print(f"{response_id}  {response.status}{refusal}")
    return status


@app.command
def demo() -> None:
    """Create and cancel a background response on an emulated server: no network, no key, no model."""
    asyncio.run(_demo(Console()))


async def _demo(console: Console) -> None:
    table = Table("call", "request", "answer", box=None, pad_edge=False, padding=(0, 2, 0, 0))
    async with (
        Emulator(script=Script(runs_for=3600)) as server,
        # A client of its own, for one of the session's would go through a proxy that the environment names.
        aiohttp.ClientSession(headers={"Authorization": "Bearer demo"}) as client,
        AsyncSession(base_url=server.base_url, api_key="demo", client_session=client) as session,
    ):
        running = await _create(client, server.base_url, {})
        table.add_row("create", "POST /responses", running["status"])
        before = await session.retrieve(running["id"])
        table.add_row("session.retrieve(id)", "GET  /responses/ID", before.status)
        cancelled = await session.cancel(running["id"])
        table.add_row("session.cancel(id)", "POST /responses/ID/cancel", f"[bold green]{cancelled.status}")
        after = await session.retrieve(running["id"])
        table.add_row("session.retrieve(id)", "GET  /responses/ID", after.status)
        done = await _create(client, server.base_url, {"runs_for": "0"})
        try:
            await session.cancel(done["id"])
        except BadRequestError as error:
            table.add_row(
                "session.cancel(done)", "POST /responses/ID/cancel", f"[yellow]{error.status} {error.message}"
            )
    console.print(f"A background response, to run for an hour on the emulated server {server.base_url}:\n")
    console.print(table)
    console.print(f"\nbefore  {before!r}\nafter   {after!r}", highlight=False, soft_wrap=True)


async def _create(client: aiohttp.ClientSession, base_url: str, metadata: dict[str, str]) -> dict[str, Any]:
    body = {"model": "emulated", "input": "How much wood?", "background": True, "metadata": metadata}
    async with client.post(f"{base_url}/responses", json=body) as answer:
        created: dict[str, Any] = await answer.json()
        return created


def _is_dialect(_: Any, dialect: str) -> None:
    if dialect not in DIALECTS:
        raise ValueError(f"Choose one of {', '.join(DIALECTS)}.")


@app.command
def emulate(
    *,
    host: str = "127.0.0.1",
    port: Annotated[int, Parameter(validator=Number(gte=0, lte=65535))] = 8080,
    runs_for: Annotated[float, Parameter(validator=Number(gte=0))] = 60.0,
    dialect: Annotated[str, Parameter(validator=_is_dialect)] = "openai",
) -> None:
    """Run the emulated server until Ctrl-C. It takes any key.

    Parameters
    ----------
    host
        Address to listen on.
    port
        Port to listen on; 0 takes a free one.
    runs_for
        Seconds that a background response runs. A request's metadata can say otherwise, and more: queued_for,
        runs_for, becomes (completed, failed or incomplete), says, resumes_after.
    dialect
        Which server it plays: openai, azure, vllm, sglang, sglang_old, ogx, litellm, litellm_polling, perplexity,
        mistralrs, openresponses or gomodel.
    """
    asyncio.run(_emulate(Emulator(host=host, port=port, script=Script(runs_for=runs_for), dialect=dialect)))


async def _emulate(emulator: Emulator) -> None:
    try:
        async with emulator:
            _print(f"OPENAI_BASE_URL={emulator.base_url} OPENAI_API_KEY=any")
            await asyncio.Event().wait()
    except (OSError, UnicodeError) as error:  # the latter for a name that is none
        raise ConfigurationError(f"The emulator cannot listen there: {getattr(error, 'strerror', error)}.") from error


def _exit_status(error: OpenAICancelError) -> int:
    if isinstance(error, InvalidResponseIdError):
        return USAGE
    if isinstance(error, ConfigurationError | AuthenticationError | PermissionDeniedError):
        return CONFIGURATION
    return NOT_STOPPED


def _error_as_json(error: OpenAICancelError) -> dict[str, Any]:
    described: dict[str, Any] = {"type": type(error).__name__, "message": str(error)}
    if isinstance(error, APIStatusError):
        described |= {"status": error.status, "code": error.code, "request_id": error.request_id}
    return described


def _print_json(document: dict[str, Any]) -> None:
    try:
        line = orjson.dumps(document).decode()  # which writes null for NaN, as JSON must
    except TypeError:  # half a surrogate, or a long number
        line = json.dumps(document)
    _print(line)


def _print(line: str) -> None:
    """Write a line. Where nobody reads it, or the disk is full, the work goes on all the same."""
    try:
        print(line, flush=True)  # noqa: T201 - this is the output
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        _complain(f"the output is lost from here on: {error.strerror}", OK)


def _complain(problem: object, status: int) -> int:
    try:
        print("openai-cancel:", *str(problem).split(), file=sys.stderr, flush=True)  # noqa: T201 - the place for it
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())
    return status


if __name__ == "__main__":
    main()
