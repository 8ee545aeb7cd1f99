"""The servers that the emulator can play, as data: how each answers a cancel, by the state of the response."""

import base64
import binascii
import json
import math
import re
import secrets
import time
import uuid
from collections.abc import Callable, Mapping
from http import HTTPStatus
from typing import Any, Literal

import attrs

from openai_cancel.emulator.checks import check_seconds, one_of

SYNCHRONOUS = "Cannot cancel a synchronous response."
NOT_FOUND = "Response with id '{id}' not found."
NO_MODEL = (
    "litellm.BadRequestError: You passed in model=None. There are no healthy deployments for this model. "
    "Received Model Group=None"
)
NOT_BACKGROUND = "This response cannot be streamed because it was not created with background=true."
NOT_STREAMED = (
    "This response cannot be streamed because it was not created with stream=true or the stream TTL has expired."
)
TOO_OLD = "This response can no longer be streamed because it is more than {minutes} minutes old"
NO_ROUTE = "Not Found"
NO_KEY = (
    "You didn't provide an API key. You need to provide your API key in an Authorization header using Bearer auth "
    "(i.e. Authorization: Bearer YOUR_KEY), or as the password field (with blank username) if you're accessing the "
    "API from your browser and are prompted for a username and password. You can obtain an API key from "
    "https://platform.openai.com/account/api-keys."
)
BAD_KEY = (
    "Incorrect API key provided: {key}. You can find your API key at https://platform.openai.com/account/api-keys."
)


@attrs.frozen
class Reply:
    """The answer to a request.

    Attributes:
        status: the HTTP status.
        words: the message of an error; it may contain `{id}`, `{key}` and `{status}`. None to answer with the response.
        cancels: whether the response is cancelled first.
        reports: a status to report in place of the response's own.
        code: the code of an error.
        plain: whether the words are sent as plain text.
        body: a JSON object to answer with in place of the response; its strings may contain `{id}` and `{status}`.
    """

    status: int = 200
    words: str | None = None
    cancels: bool = False
    reports: str | None = None
    code: str | None = None
    plain: bool = False
    body: Mapping[str, Any] | None = None


@attrs.frozen(kw_only=True)
class Failure:
    """An error, before a dialect turns it into a body.

    Attributes:
        status: the HTTP status.
        message: what is wrong.
        param: the parameter that is wrong, or None.
        code: the error code, or None.
        request_id: the id that the emulator gave the request.
    """

    status: int
    message: str
    param: str | None = None
    code: str | None = None
    request_id: str = ""


@attrs.frozen(kw_only=True)
class List:
    """The list of responses of a server.

    Attributes:
        default: the number of responses of a page, if the request does not say it.
        largest: the largest number.
        takes_model: whether the list can be restricted to a model.
        unknown_cursor: the message if no response has the id that the page should follow; it may contain `{id}`.
    """

    default: int
    largest: int = 100
    takes_model: bool = False
    unknown_cursor: str = NOT_FOUND


CANCELS = Reply(cancels=True)
REPORTS = Reply()


def _openai_error(failure: Failure) -> Any:
    return {
        "error": {
            "message": failure.message,
            "type": "invalid_request_error",
            "param": failure.param,
            "code": failure.code,
        }
    }


def _azure_error(failure: Failure) -> Any:
    error = {"message": failure.message, "type": "invalid_request_error", "param": "response_id"}
    return {
        "error": {
            **error,
            "code": failure.code or "invalid_request_error",
            "additionalInfo": {"request_id": failure.request_id},
        }
    }


def _open_error(failure: Failure) -> Any:
    missing = failure.status == HTTPStatus.NOT_FOUND
    return {
        "error": {
            "message": failure.message,
            "type": "not_found" if missing else "invalid_request",
            "param": failure.param,
            "code": "response_not_found" if missing else failure.code or "invalid_value",
        }
    }


def _vllm_error(failure: Failure) -> Any:
    if failure.status == HTTPStatus.UNAUTHORIZED:
        return {"error": "Unauthorized"}
    return {
        "error": {
            "message": failure.message,
            "type": "invalid_request_error",
            "param": failure.param,
            "code": failure.status,
        }
    }


def _flat_error(failure: Failure) -> Any:
    return {
        "object": "error",
        "message": failure.message,
        "type": "invalid_request_error",
        "param": failure.param,
        "code": failure.status,
    }


def _fastapi_error(failure: Failure) -> Any:
    if failure.status == HTTPStatus.UNAUTHORIZED:
        return {"error": {"message": failure.message}}
    return {"detail": failure.message}


def _litellm_error(failure: Failure) -> Any:
    upstream = json.dumps(_fastapi_error(failure))
    kind = "NotFoundError" if failure.status == HTTPStatus.NOT_FOUND else "BadRequestError"
    message = f"litellm.{kind}: OpenAIException - {upstream}" if failure.code is None else failure.message
    return {"error": {"message": message, "type": failure.code, "param": None, "code": str(failure.status)}}


def _litellm_id(response_id: str) -> str:
    """Return a new id for the response, with `-`, `_` and `=` of URL-safe base64. LiteLLM does so in every reply."""
    inner = b"\xfb\xef\xff" + secrets.token_bytes(240) + f";response_id:{response_id}".encode()
    return f"resp_{base64.urlsafe_b64encode(inner).decode()}"


def _id_in_litellm_id(shown: str) -> str:
    """Return the id that `_litellm_id` was called with."""
    standard = shown.removeprefix("resp_").translate(_STANDARD_BASE64)
    try:
        # base64.urlsafe_b64decode warns of `+` and forgives missing padding since CPython 3.15.
        return binascii.a2b_base64(standard).rpartition(b";response_id:")[2].decode()
    except ValueError:
        return shown


_STANDARD_BASE64 = str.maketrans("-_", "+/")
_ACTIVE = ("queued", "in_progress")
_ENDED = ("completed", "failed", "incomplete")
_STATUSES = (*_ACTIVE, *_ENDED, "cancelled")
_RUNNING: dict[str, Reply] = dict.fromkeys(_ACTIVE, CANCELS)
_OVER = Reply(400, "Cannot cancel a {status} response.")
_PORTKEY_FAILURE = Reply(500, body={"status": "failure", "message": "Something went wrong"})
_SMG_UNKNOWN = Reply(404, "No response found with id '{id}'", code="not_found")
_SMG_CONFLICT = Reply(400, "Cannot use background mode with streaming", code="background_conflicts_with_stream")
_CONFLICT = {
    **dict.fromkeys(_ENDED, Reply(409, "Response '{id}' cannot be cancelled: its status is {status}.")),
    "not_background": Reply(409, "Response '{id}' cannot be cancelled: it does not run in the background."),
}


def _running_or(reply: Reply) -> dict[str, Reply]:
    """Cancel what is queued or running, and reply the same to everything else."""
    return {**_RUNNING, **dict.fromkeys((*_ENDED, "cancelled", "not_background"), reply)}


def _devui_reply(status: str) -> Reply:
    return Reply(body={"status": status, "response_id": "{id}"})


def _smg_over(status: str) -> Reply:
    return Reply(400, f"Cannot cancel {status} response.", code=f"response_already_{status}")


def _always(reply: Reply) -> dict[str, Reply]:
    """Reply the same to everything, unknown ids included."""
    return dict.fromkeys((*_STATUSES, "not_background", "unknown"), reply)


def _replies(replies: Mapping[str, str | Reply]) -> dict[str, Reply]:
    return {state: reply if isinstance(reply, Reply) else Reply(reports=reply) for state, reply in replies.items()}


@attrs.frozen(kw_only=True)
class Dialect:
    """How one server speaks the Responses API.

    Attributes:
        cancel: the reply to a cancel, by the state of the response: its status, `not_background`, or `unknown` for an
            id that no response has. The default is to report the response, or `unknown`.
        unknown: the reply for an id that no response has.
        malformed: the reply for an id that does not match `id_form`. None to reply as for an unknown id.
        id_form: the form of the server's ids.
        no_key: the reply to a request without a key. None if the server does not check.
        bad_key: the reply to a request with a wrong key. None if the server does not check.
        error: builds the body of an error.
        new_id: creates an id.
        show_id: returns the id to put into a reply, which may differ each time.
        read_id: returns the id behind one that `show_id` returned.
        create: the status that a create reports, by the response's own.
        retrieve: the reply to a retrieve, by the response's own status, or `unknown` for an id that no response has.
            A string is a status to report. The default is to report the response, or `unknown`.
        needs_query: the reply to a request without a parameter of the query, by the name of the parameter.
        lacks: fields that the server leaves out of a response.
        adds: fields that the server adds to a response.
        dates_cancelled: whether a cancelled response has a `completed_at`.
        cancel_takes: seconds that a cancel takes.
        cancelling_for: seconds for which a cancelled response reports `cancelling`.
        takes_body: whether a cancel may have a body.
        compresses: whether replies are compressed with gzip.
        empties_errors: whether an error announces a body that is compressed with gzip, but has none: the connection is
            closed after the headers.
        decodes_slashes: whether an encoded slash ends an id, so that no route matches.
        background_stream: the reply to a create that asks for a stream of a background response. None to stream, and
            `Reply()` to ignore that a stream was asked for.
        replays: whether a retrieve can stream. If not, it ignores that a stream was asked for.
        streams_for: seconds after its creation in which a retrieve can stream a response.
        forgets_cancelled: whether a retrieve cannot stream a cancelled response.
        cancelled_stream: what happens to the stream of a response that is cancelled: it `ends` without another event,
            `fails` with a `response.failed` that shows a cancelled response, or `hangs`.
        lists: how the server lists its responses, or None if it does not.
        no_list: the reply to a request for the list of a server that has none.
        hides_foreground: whether a response that does not run in the background is unknown until it has ended.

    Raises:
        ValueError: a time is negative or NaN, or `cancelled_stream` has a value that is not listed here.
    """

    cancel: Mapping[str, Reply]
    unknown: Reply = Reply(404, NOT_FOUND)
    malformed: Reply | None = None
    id_form: re.Pattern[str] = re.compile("")
    no_key: Reply | None = Reply(401, NO_KEY)
    bad_key: Reply | None = Reply(401, BAD_KEY, code="invalid_api_key")
    error: Callable[[Failure], Any] = _openai_error
    new_id: Callable[[], str] = lambda: f"resp_{secrets.token_hex(25)}"
    show_id: Callable[[str], str] = str
    read_id: Callable[[str], str] = str
    create: Mapping[str, str] = attrs.field(factory=lambda: {"in_progress": "queued"})
    retrieve: Mapping[str, Reply] = attrs.field(factory=dict[str, Reply], converter=_replies)
    needs_query: Mapping[str, Reply] = attrs.field(factory=dict[str, Reply])
    lacks: frozenset[str] = frozenset()
    adds: Mapping[str, Any] = attrs.field(factory=dict[str, Any])
    cancel_takes: float = attrs.field(default=0.0, validator=check_seconds)
    cancelling_for: float = attrs.field(default=0.0, validator=check_seconds)
    takes_body: bool = True
    compresses: bool = False
    dates_cancelled: bool = False
    empties_errors: bool = False
    decodes_slashes: bool = False
    background_stream: Reply | None = None
    replays: bool = True
    streams_for: float = attrs.field(default=math.inf, validator=check_seconds)
    forgets_cancelled: bool = False
    cancelled_stream: Literal["ends", "fails", "hangs"] = attrs.field(
        default="ends", validator=one_of("ends", "fails", "hangs")
    )
    hides_foreground: bool = False
    lists: List | None = None
    no_list: Reply = Reply(405, "Method Not Allowed")


# OpenAI's API has no event for a cancelled response: https://github.com/openai/openai-python/issues/2643. It refuses to
# stream what is more than five minutes old: https://github.com/openai/openai-python/issues/2828.
OPENAI = Dialect(
    cancel={**_RUNNING, **dict.fromkeys(_ENDED, _OVER), "not_background": Reply(400, SYNCHRONOUS)}, streams_for=300
)

AZURE = Dialect(
    cancel={
        **_RUNNING,
        **dict.fromkeys(_ENDED, _OVER),
        "incomplete": Reply(400, "Cannot cancel a response in terminal state."),
        "not_background": Reply(400, SYNCHRONOUS),
    },
    malformed=Reply(400, "Malformed identifier."),
    id_form=re.compile(r"caresp_\w{32,}"),
    no_key=None,
    bad_key=None,
    error=_azure_error,
    new_id=lambda: f"caresp_{secrets.token_hex(25)}",
    create={},
    cancel_takes=0.5,
    forgets_cancelled=True,
    cancelled_stream="fails",
    hides_foreground=True,
    lists=List(default=20),  # https://learn.microsoft.com/azure/foundry/reference/rest/list-responses
)

DIALECTS: Mapping[str, Dialect] = {
    "openai": OPENAI,
    "azure": AZURE,
    "vllm": Dialect(
        cancel=_running_or(Reply(400, SYNCHRONOUS)),
        error=_vllm_error,
        new_id=lambda: f"resp_{uuid.uuid4().hex}",
        retrieve={"in_progress": "queued"},
        lacks=frozenset({"error", "completed_at", "store"}),
        adds={"kv_transfer_params": None, "input_messages": None, "output_messages": None},
        cancelled_stream="hangs",  # https://github.com/vllm-project/vllm/pull/49721
        hides_foreground=True,
    ),
    "sglang_old": Dialect(
        cancel=_running_or(Reply(400, SYNCHRONOUS)),
        error=_flat_error,
        new_id=lambda: f"resp_{time.time()}",
        lacks=frozenset(
            {"error", "incomplete_details", "instructions", "metadata", "temperature", "top_p", "background"}
        ),
        background_stream=REPORTS,
        replays=False,
    ),
    "sglang": Dialect(
        cancel=_RUNNING,
        error=_flat_error,
        new_id=lambda: f"resp_{uuid.uuid4().hex}",
        background_stream=REPORTS,
        replays=False,
    ),
    "ogx": Dialect(
        cancel={
            "queued": CANCELS,
            "in_progress": Reply(cancels=True, reports="in_progress"),
            **_CONFLICT,
        },
        error=_fastapi_error,
        new_id=lambda: f"resp_{uuid.uuid4()}",
        lists=List(default=50, takes_model=True, unknown_cursor="Record with id='{id}' not found in table 'responses'"),
        background_stream=Reply(400, "OGX does not yet support 'stream' and 'background' together."),
        replays=False,
    ),
    "litellm": Dialect(
        cancel={**_RUNNING, **_CONFLICT},
        malformed=Reply(400, NO_MODEL, code="invalid_request_error"),
        id_form=re.compile(r"resp_[\w-]{320,}={0,2}$"),
        retrieve={"incomplete": Reply(500, "litellm.APIError: APIError: OpenAIException", code="None")},
        no_key=Reply(500, "Internal Server Error", plain=True),
        bad_key=Reply(400, "No connected db.", code="no_db_connection"),
        error=_litellm_error,
        new_id=lambda: f"resp_{uuid.uuid4()}",
        show_id=_litellm_id,
        read_id=_id_in_litellm_id,
        compresses=True,
    ),
    "litellm_polling": Dialect(
        cancel={
            **_RUNNING,
            **_CONFLICT,
            **dict.fromkeys(_ENDED, CANCELS),
        },
        malformed=Reply(400, NOT_FOUND),
        id_form=re.compile("litellm_poll_"),
        no_key=Reply(500, "Internal Server Error", plain=True),
        bad_key=Reply(400, "No connected db.", code="no_db_connection"),
        error=_litellm_error,
        new_id=lambda: f"litellm_poll_{uuid.uuid4()}",
        adds={"model": None},
        compresses=True,
        background_stream=REPORTS,
        replays=False,
    ),
    "perplexity": attrs.evolve(OPENAI, cancelling_for=3.0),
    "mistralrs": attrs.evolve(
        OPENAI,
        cancel=_running_or(Reply(404, NOT_FOUND)),
    ),
    "openresponses": attrs.evolve(
        OPENAI,
        cancel={**_RUNNING, "not_background": Reply(400, "Only background responses can be cancelled.")},
        no_key=Reply(401, "Incorrect or missing API key.", code="invalid_api_key"),
        bad_key=Reply(401, "Incorrect or missing API key.", code="invalid_api_key"),
        error=_open_error,
        new_id=lambda: f"resp_{uuid.uuid4().hex}",
        hides_foreground=True,
    ),
    "gomodel": attrs.evolve(OPENAI, takes_body=False),
    "smg": attrs.evolve(
        OPENAI,
        cancel={
            **_RUNNING,
            **dict.fromkeys(("completed", "incomplete", "not_background"), _smg_over("completed")),
            "failed": _smg_over("failed"),
            "unknown": Reply(404, NOT_FOUND, code="response_not_found"),
        },
        unknown=_SMG_UNKNOWN,
        no_key=None,
        bad_key=None,
        dates_cancelled=True,
        background_stream=_SMG_CONFLICT,
        replays=False,
        hides_foreground=True,
    ),
    "smg_http": attrs.evolve(OPENAI, retrieve=_always(_SMG_UNKNOWN), background_stream=_SMG_CONFLICT),
    "smg_openai": attrs.evolve(
        OPENAI,
        background_stream=_SMG_CONFLICT,
        cancel=_always(Reply(501, "Cancel response not implemented", plain=True)),
        unknown=_SMG_UNKNOWN,
        no_key=None,
        bad_key=None,
    ),
    "databricks": attrs.evolve(
        OPENAI,
        cancel=_always(Reply(501, "Cancellation is not yet implemented.")),
        unknown=Reply(404, "Response not found"),
        no_key=None,
        bad_key=None,
        error=_fastapi_error,
        new_id=lambda: f"resp_{secrets.token_hex(12)}",
        create={},
        retrieve=dict.fromkeys(_STATUSES, Reply(body={"id": "{id}", "status": "{status}", "attempt_number": 1})),
        decodes_slashes=True,
    ),
    "devui": attrs.evolve(
        OPENAI,
        cancel={
            **dict.fromkeys(_ACTIVE, attrs.evolve(_devui_reply("cancelled"), cancels=True)),
            **dict.fromkeys((*_ENDED, "not_background"), _devui_reply("already_completed")),
            **dict.fromkeys(("cancelled", "unknown"), _devui_reply("not_found")),
        },
        error=_fastapi_error,
        retrieve=_always(Reply(404, NO_ROUTE)),
        decodes_slashes=True,
    ),
    "portkey": attrs.evolve(
        OPENAI,
        cancel={
            **OPENAI.cancel,
            **dict.fromkeys(_ACTIVE, attrs.evolve(_PORTKEY_FAILURE, cancels=True)),
            "cancelled": _PORTKEY_FAILURE,
        },
        retrieve={"unknown": Reply(404, f"openai error: {NOT_FOUND}")},
    ),
    "open_responses_server": attrs.evolve(OPENAI, empties_errors=True, decodes_slashes=True),
    "azure_restarted": attrs.evolve(
        AZURE,
        cancel=_always(Reply(404, NOT_FOUND)),
        retrieve=dict.fromkeys(_STATUSES, "in_progress"),
    ),
    "method_not_allowed": attrs.evolve(OPENAI, cancel=_always(Reply(405, "Method Not Allowed")), error=_fastapi_error),
    "no_cancel_route": attrs.evolve(
        OPENAI, cancel=_always(Reply(404, NO_ROUTE)), no_list=Reply(404, NO_ROUTE), error=_fastapi_error
    ),
}
"""The dialects by name. Each follows the recorded answers of its server; where there are none, those of OpenAI."""
