"""The command `emulate`, which runs the emulated server."""

from contextlib import nullcontext
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter
from cyclopts.validators import Number

from openai_cancel.cli.exit_status import UsageError
from openai_cancel.cli.options import Duration, Flag, Name
from openai_cancel.cli.output import print_line
from openai_cancel.errors import ConfigurationError

if TYPE_CHECKING:
    from openai_cancel.emulator import Emulator


def _is_dialect(_: Any, dialect: str) -> None:
    from openai_cancel.emulator import DIALECTS

    if dialect not in DIALECTS:
        raise ValueError(f"Choose one of {', '.join(DIALECTS)}.")


def emulate(
    *,
    host: Name = "127.0.0.1",
    port: Annotated[int, Parameter(validator=Number(gte=0, lte=65535), metavar="PORT")] = 8080,
    runs_for: Annotated[float, Duration, Parameter(validator=Number(gte=0))] = 60.0,
    rate_limit: Annotated[float | None, Parameter(validator=Number(gt=0), metavar="N")] = None,
    dialect: Annotated[str, Parameter(validator=_is_dialect, metavar="DIALECT")] = "openai",
    api_key: Annotated[str | None, Parameter(metavar="KEY")] = None,
    faults: Annotated[tuple[str, ...], Flag, Parameter("--fault", metavar="FAULT")] = (),
    log_requests: Annotated[bool, Flag] = False,
) -> None:
    """Run the emulated server until Ctrl-C. It accepts any key, unless one is set.

    ```
    openai-cancel emulate --port 8080
    openai-cancel emulate --port 0 --runs-for 5m --dialect vllm
    openai-cancel emulate --port 8080 --fault "cancel:503*2" --log-requests
    ```

    The metadata of a request can change how its response runs: queued_for, runs_for, becomes (completed, failed or
    incomplete), says, resumes_after.

    The dialects are openai, azure, vllm, sglang, sglang_old, ogx, litellm, litellm_polling, perplexity, mistralrs,
    openresponses, gomodel, smg, smg_http, smg_openai, databricks, devui, portkey, open_responses_server,
    azure_restarted, method_not_allowed and no_cancel_route.

    A fault affects the next requests that it fits: [OPERATION:]WHAT[+WHAT][*COUNT], such as cancel:503+retry-after=1*2.
    The operation is create, retrieve, cancel, delete or list, or left out for any. What happens is a status such as
    503, a delay such as 2s, retry-after=SECONDS, html (the page of a gateway), hang, cut (no answer), cut-body, or lost
    (the request takes effect, and its answer is lost).

    Args:
        host: The address to listen on.
        port: The port to listen on. 0 picks a free port.
        runs_for: The time that a background response runs.
        rate_limit: Requests per second. The server answers 429 to any more.
        dialect: The server to emulate.
        api_key: The only key that is accepted. Make one up: other users can see it.
        faults: A fault, such as cancel:503*2 or retrieve:2s+502+html. Can be repeated.
        log_requests: Print a line for each request to standard error, without its key.
    """
    import asyncio  # slow to import, as below: the help does without
    import logging

    from openai_cancel.cli.faults import read_faults
    from openai_cancel.cli.log_records import showing_records
    from openai_cancel.emulator import Emulator, Script

    read = [fault for text in faults for fault in read_faults(text)]
    if not host:
        raise UsageError("--host must not be empty: for all addresses of this machine, pass 0.0.0.0.")
    if api_key == "":
        raise UsageError("--api-key must not be empty.")
    script = Script(runs_for=runs_for)
    emulator = Emulator(host=host, port=port, script=script, rate_limit=rate_limit, dialect=dialect, api_key=api_key)
    emulator.faults += read
    lines = logging.StreamHandler()
    lines.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
    try:
        with showing_records(lines, logging.getLogger("openai_emulator")) if log_requests else nullcontext():
            asyncio.run(_emulate(emulator, "any" if api_key is None else None))
    except (OSError, UnicodeError) as error:  # the latter if the host is not a valid name
        reason = getattr(error, "strerror", error)
        raise ConfigurationError(f"Cannot listen on {host}, port {port}: {reason}.") from error


async def _emulate(emulator: "Emulator", key: str | None) -> None:
    import asyncio

    async with emulator:
        print_line(f"OPENAI_BASE_URL={emulator.base_url}{f' OPENAI_API_KEY={key}' if key else ''}")
        await asyncio.Event().wait()
