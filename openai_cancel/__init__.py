"""Stop background responses of the OpenAI Responses API, on any server that speaks it.

The calls, from simple to safe. `Session` has the same calls as `AsyncSession`, blocking.

- `AsyncSession.cancel` and `AsyncSession.retrieve` call the API as it is documented. They return a `Response` or raise.
- `AsyncSession.stop` makes sure that a response no longer runs, and returns an `Outcome`.
- `AsyncSession.guard` stops responses when a block is left by an exception. It takes ids, and clients of the openai
  package. `AsyncSession.wait` waits until a response ends, and stops it if the wait ends early.
- `AsyncSession.stop_many` and `AsyncSession.wait_many` take any number of ids. `AsyncSession.running` finds responses
  without ids, on servers that list them.
- `AsyncSession.watch` records in a database what a client creates, so that a sweep can stop it if the process dies.

Wherever an id is taken, an object with an `.id` is, too, such as a response of this package or of openai.

More is in `openai_cancel.ledger` (databases, sweeps, deployment), `openai_cancel.emulator` (a server for tests),
`openai_cancel.models` (the classes of a response), `openai_cancel.errors` and `openai_cancel.cli` (the command).

# Servers and keys

As with other clients of this API, the key and the server come from the environment: `OPENAI_API_KEY`,
`OPENAI_BASE_URL`, `OPENAI_ORG_ID`, `OPENAI_PROJECT_ID`, and extra headers from `OPENAI_CUSTOM_HEADERS`. Arguments take
precedence. `AsyncSession` documents every option.

```python
import os

from openai_cancel import Session

with Session(base_url=os.environ["OPENAI_BASE_URL"], api_key="any") as session:  # vLLM, SGLang, ogx, LiteLLM, …
    session.cancel("resp_123")
```

For Azure OpenAI, use `AsyncSession.azure(endpoint, api_key=…)`, or pass `token_provider=…` for Entra ID.
`AsyncSession.from_openai(client)` copies the key, base URL, organization, project, headers and query of an `openai`
client, but not its timeouts or its transport.

# Retries

Connection errors, timeouts, 408, 429 and 5xx are retried with exponential backoff and jitter, or after the time in
`retry-after`. An `x-should-retry` header takes precedence. 409, which here means "cannot be cancelled", 501, an
exhausted quota and an untrusted certificate are not retried.

# Questions about cancelling

*Which responses can be cancelled?* Those that were created with `background=true`
([reference](https://platform.openai.com/docs/api-reference/responses/cancel)).

*How long does a server know an id?* That depends on the server. OpenAI keeps responses of projects with zero data
retention for about ten minutes only, so that they can be polled. The same holds under modified abuse monitoring, for
responses without `store=true` ([guide](https://platform.openai.com/docs/guides/background)).

*Why does a response that has ended cause a 400?* Servers refuse to cancel it, each with its own message. vLLM answers
"Cannot cancel a synchronous response." for everything that is not running. `stop` checks the status instead.

*Can a cancelled response be completed later?* This has happened on Azure, minutes after a GET had returned `cancelled`
([Q&A 2339607](https://learn.microsoft.com/answers/questions/2339607)), and on LiteLLM and ogx. Use `confirm=` there.

*Can I cancel twice?* Yes. OpenAI documents that a second cancel changes nothing. Other servers answer it in their own
ways, which `stop` understands.

*Does cancelling stop the billing?* That is not documented. OpenAI reports no `usage` for a cancelled response, and
[users](https://community.openai.com/t/cancelling-stream-does-not-show-usage/1377768) could not see what it cost. Ask
your provider.

# Logging and telemetry

Every session takes a function as `on_outcome`, sync or async, that is called once with each outcome, whatever ended the
response:

```python
from collections import Counter

from openai_cancel import Session

verdicts: Counter[str] = Counter()
with Session(on_outcome=lambda outcome: verdicts.update([outcome.verdict])) as session:
    session.stop("resp_123")
print(verdicts)
```

The loggers write a line for each outcome and each attempt (DEBUG), without keys or bodies. A response that was not
stopped is a WARNING. Every record has fields for machines, which `openai_cancel.log_events` explains.

If the process has imported OpenTelemetry (`pip install 'openai-cancel[otel]'`), each `stop` is a span, including those
of `stop_many`, `guard` and `wait`. The span has the id, the server, the verdict and the number of attempts. Its status
is ERROR if the response was not stopped. A span costs 27 µs with the SDK, and 0.1 µs if nothing is traced. Outcomes,
their seconds, and what is guarded, watched and overdue are metrics: see `openai_cancel.metrics`.

`opentelemetry-instrumentation-aiohttp-client` records each attempt as a span of your trace, also with a `Session`. The
key is in no attribute. The query is, so put no secrets there.

# Security

These properties are tested:

- The key is sent only to the host of `base_url`. `~/.netrc` does not replace it, and a proxy does not see the key of an
  https server. Redirects are not followed: one would also turn the POST into a GET, whose answer looks like a success.
- The key appears in no URL, repr, log line, error, pickle or ledger row, and in no local variable of this package in a
  traceback. If a server repeats the key in an error, it is replaced by `***`, and so are values of headers and of the
  query whose names sound like those of credentials, such as `subscription-key`.
- If the key would travel to another machine over plain http, an `InsecureTransportWarning` says so.
- An id is always one segment of the path, also if it contains slashes, as some do. Ids, headers and query values cannot
  inject anything into a request.
- Certificates are verified. An untrusted certificate is a final error.
- A server can make a call fail, and nothing worse. The size of bodies is limited, also after decompression, and so is
  the time. Data that arrives on an idle connection is not taken for the answer to the next request.

These are not covered: the key is in the memory of the process, and in your own variables. Error collectors that copy
strings instead of their repr, such as those of Elastic APM and Rollbar, can copy it from ours: turn their collection of
local variables off. A `client_session` of yours follows your settings. A server's reports about a response are trusted.
The emulator is for tests: do not expose it to a network.

# Limits

Buffers, queues, retries and waits have limits. Two things have none by default: how long `wait` waits, which is as long
as the response runs unless you set a `timeout`, and the ids in a log that the command resumes, which are all in memory.

- A body: `max_body_bytes`, 64 MiB. More is not read. A status line or a header: 8,190 bytes each, set by aiohttp.
- The message of an error, as shown and in a ledger: 1,000 characters.
- Connections: `max_connections`, 100. Streams of `wait(stream=True)` use at most half of them.
- An attempt: `timeout`, 30 s. A new connection: `connect_timeout`, 5 s. All attempts of a call: `deadline`, 60 s.
- Retries: `max_retries`, 4. The wait before each: up to 8 s, or up to 60 s if the server asks for it.
- A `stop`: its own `deadline`, 60 s. The stops of a guard: `grace`, 10 s.
- `stop_many`: 64 responses at a time, and as many outcomes that are not yet consumed (`concurrency`).
- `wait_many`: 1,000 responses at a time (`concurrency`).
- A line in a file of ids: 16,777,216 characters. An id in it: 4,096 characters.
- A ledger: 5 s for a transaction, and for its close (`timeout`); 0.3 of that for a row that another transaction has
  locked. An operation is refused if more than 100 wait, one of them for longer than that `timeout`, or if 200,000 wait.
  100,000 rows are written later. A sweep gives up a response after 12 attempts (`max_attempts`).

# Versions

This project follows [Semantic Versioning](https://semver.org). That covers what `openai_cancel`,
`openai_cancel.models`, `openai_cancel.ledger`, `openai_cancel.emulator` and `openai_cancel.testing` export, the options
and exit statuses of the command, the tables of a ledger, the names of log events, log fields and metrics, and the
fixture and the marker for pytest. Names that begin with an underscore, and all other
modules, may change at any time. A new field or class of a response is a minor version.
"""

from typing import TYPE_CHECKING

from openai_cancel.version import __version__

if TYPE_CHECKING:
    from openai_cancel.abandonment import Abandoned
    from openai_cancel.caller import CallOptions, RequestOptions
    from openai_cancel.clients import Client
    from openai_cancel.clock import Clock
    from openai_cancel.errors import (
        AbandonedError,
        APIConnectionError,
        APIError,
        APIStatusError,
        APITimeoutError,
        AuthenticationError,
        BadRequestError,
        ConfigurationError,
        ConflictError,
        InsecureTransportWarning,
        InternalServerError,
        InvalidResponseIdError,
        LeaseTakenError,
        LedgerError,
        ListingError,
        NotFoundError,
        OpenAICancelError,
        PermissionDeniedError,
        RateLimitError,
        ResponseDecodeError,
        SessionStateError,
        UnprocessableEntityError,
        UnsupportedError,
    )
    from openai_cancel.guard import Guard, OnExit
    from openai_cancel.models import Response
    from openai_cancel.outcome import OnOutcome, Outcome, Verdict
    from openai_cancel.session import AsyncSession
    from openai_cancel.settings import ApiKey, Options
    from openai_cancel.sync import BlockingGuard, BlockingWatch, Session
    from openai_cancel.update_hook import OnUpdate
    from openai_cancel.wait import WaitTimeoutError
    from openai_cancel.wait_many import WaitResult
    from openai_cancel.watch import Watch
    from openai_cancel.wire import HasId, ResponseId
else:
    # The command shows its help without aiohttp, which takes long to import. Names are looked for in these modules,
    # the lightest first.
    _MODULES = (
        *("errors", "outcome", "clock", "models", "clients", "settings", "wire", "caller"),
        *("update_hook", "guard", "wait", "wait_many", "abandonment", "watch", "session", "sync"),
    )

    def __getattr__(name: str) -> object:
        """Import a public name or a module of this package when it is first used."""
        from importlib import import_module, util  # not needed by the command

        if name in __all__:
            modules = (vars(import_module(f"{__name__}.{module}")) for module in _MODULES)
            found = next(module[name] for module in modules if name in module)
            return globals().setdefault(name, found)
        if name.startswith("_") or not name.isidentifier() or util.find_spec(f"{__name__}.{name}") is None:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return import_module(f"{__name__}.{name}")

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})


__all__ = [
    "APIConnectionError",
    "APIError",
    "APIStatusError",
    "APITimeoutError",
    "Abandoned",
    "AbandonedError",
    "ApiKey",
    "AsyncSession",
    "AuthenticationError",
    "BadRequestError",
    "BlockingGuard",
    "BlockingWatch",
    "CallOptions",
    "Client",
    "Clock",
    "ConfigurationError",
    "ConflictError",
    "Guard",
    "HasId",
    "InsecureTransportWarning",
    "InternalServerError",
    "InvalidResponseIdError",
    "LeaseTakenError",
    "LedgerError",
    "ListingError",
    "NotFoundError",
    "OnExit",
    "OnOutcome",
    "OnUpdate",
    "OpenAICancelError",
    "Options",
    "Outcome",
    "PermissionDeniedError",
    "RateLimitError",
    "RequestOptions",
    "Response",
    "ResponseDecodeError",
    "ResponseId",
    "Session",
    "SessionStateError",
    "UnprocessableEntityError",
    "UnsupportedError",
    "Verdict",
    "WaitResult",
    "WaitTimeoutError",
    "Watch",
    "__version__",
]
