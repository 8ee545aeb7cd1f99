"""The wire format: ids become requests, and answers become responses or errors, without I/O."""

import json
import sys
from types import SimpleNamespace
from urllib.parse import unquote

import pytest
from conftest import KEY, SHARED, needs_shared
from hypothesis import given
from hypothesis import strategies as st
from multidict import CIMultiDict

from openai_cancel import __version__
from openai_cancel.errors import (
    APIStatusError,
    AuthenticationError,
    BadRequestError,
    ConfigurationError,
    ConflictError,
    InternalServerError,
    InvalidResponseIdError,
    NotFoundError,
    PermissionDeniedError,
    RateLimitError,
    ResponseDecodeError,
    UnprocessableEntityError,
    UnsupportedError,
)
from openai_cancel.models import Response
from openai_cancel.settings import Settings
from openai_cancel.wire import MESSAGE_LIMIT, Answer, Request, Wire, decode

WIRE = Wire.from_settings(Settings.openai(api_key=KEY, base_url="https://host/v1/"))
REQUEST = WIRE.request("GET", "resp_1")


def decode_answer(
    status: int, headers: dict[str, str], body: bytes, *, complete: bool = True, request: Request = REQUEST
) -> Response:
    return decode(Answer(status, CIMultiDict(headers), body, complete), request)


def decode_error(status: int, body: object = b"", headers: dict[str, str] | None = None, **more) -> APIStatusError:
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    with pytest.raises(APIStatusError) as caught:
        decode_answer(status, headers or {}, raw, **more)
    return caught.value


def decode_failure(body: bytes, *, status: int = 200, complete: bool = True) -> ResponseDecodeError:
    with pytest.raises(ResponseDecodeError) as caught:
        decode_answer(status, {"x-request-id": "req_1"}, body, complete=complete)
    return caught.value


class TestRequest:
    def test_a_cancel_is_a_post_with_accept_user_agent_and_the_key(self) -> None:
        request = WIRE.request("POST", "resp_123", "/cancel")
        assert request.method == "POST"
        assert request.url == "https://host/v1/responses/resp_123/cancel"
        assert dict(request.headers) == {
            "accept": "application/json",
            "user-agent": f"openai-cancel/{__version__}",
            "authorization": f"Bearer {KEY}",
        }

    @pytest.mark.parametrize(
        ("given", "sent"),
        [
            ("resp_a+b/c=", "resp_a%2Bb%2Fc%3D"),
            ("resp_1758064503.25", "resp_1758064503.25"),
            ("resp_%2F", "resp_%252F"),
            ("a?b#c&d e", "a%3Fb%23c%26d%20e"),
            ("../responses", "..%2Fresponses"),
            ("...", "..."),
            ("é", "%C3%A9"),
            ("x" * 465, "x" * 465),
        ],
    )
    def test_an_id_becomes_one_encoded_segment_of_the_path(self, given: str, sent: str) -> None:
        assert WIRE.request("GET", given).url == f"https://host/v1/responses/{sent}"

    @given(st.text(min_size=1))
    def test_every_id_is_refused_or_can_be_decoded_from_its_segment(self, response_id: str) -> None:
        try:
            url = WIRE.request("GET", response_id).url
        except InvalidResponseIdError:
            return
        segment = url.removeprefix("https://host/v1/responses/")
        assert unquote(segment) == response_id
        assert segment.isascii()
        assert not set(segment) & set("/?#% ") - {"%"}
        assert segment not in {".", ".."}

    @pytest.mark.parametrize(
        "response_id", ["", " ", "\t\n", "\u3000", ".", "..", "resp_1\n", "resp\x00", "a\x7f", "a\x85b", "\ud800"]
    )
    def test_an_id_that_cannot_be_a_segment_is_refused(self, response_id: str) -> None:
        with pytest.raises(InvalidResponseIdError, match="cannot be a response id: pass an id that the server"):
            WIRE.request("POST", response_id, "/cancel")

    @pytest.mark.parametrize(
        ("response_id", "kind"),
        [(None, "NoneType"), (5, "int"), (b"resp_1", "bytes"), (SimpleNamespace(id=None), "SimpleNamespace")],
    )
    def test_an_object_without_a_string_as_its_id_is_refused(self, response_id: object, kind: str) -> None:
        with pytest.raises(InvalidResponseIdError, match=f"an object with a string .id, not {kind}"):
            WIRE.request("POST", response_id, "/cancel")

    def test_an_object_with_an_id_is_accepted(self) -> None:
        for created in (SimpleNamespace(id="resp_1"), Response(id="resp_1")):
            assert WIRE.request("GET", created).url == "https://host/v1/responses/resp_1"

    def test_headers_of_a_call_take_precedence_in_any_case(self) -> None:
        own = {"User-Agent": "mine", "AUTHORIZATION": "Basic x", "X-A": "1"}
        headers = WIRE.with_options(headers=own, query=None).request("GET", "x").headers
        assert headers["user-agent"] == "mine"
        assert headers["authorization"] == "Basic x"
        assert headers["x-a"] == "1"
        assert "x-a" not in WIRE.headers

    def test_the_queries_of_base_url_session_and_call_are_merged(self) -> None:
        wire = Wire.from_settings(
            Settings.openai(api_key=KEY, base_url="https://host/v1?api-version=1&a=b", query={"a": "c d"})
        )
        assert wire.request("GET", "x").url == "https://host/v1/responses/x?api-version=1&a=c+d"
        assert (
            wire.with_options(headers=None, query={"e": "ü&"})
            .request("GET", "x")
            .url.endswith("?api-version=1&a=c+d&e=%C3%BC%26")
        )
        assert wire.with_options(headers=None, query={"a": "z"}).request("GET", "x").url.endswith("?api-version=1&a=z")
        twice = Wire.from_settings(Settings.openai(api_key=KEY, base_url="https://host/v1?a=1&a=2"))
        assert twice.request("GET", "x").url.endswith("?a=1&a=2")

    def test_headers_and_query_of_a_call_that_cannot_be_sent_are_refused(self) -> None:
        with pytest.raises(ConfigurationError, match="line breaks"):
            WIRE.with_options(headers={"a": "b\nc"}, query=None)
        with pytest.raises(ConfigurationError, match="must be strings"):
            WIRE.with_options(headers=None, query={"a": 1})

    def test_organization_and_project_are_headers(self) -> None:
        wire = Wire.from_settings(Settings.openai(api_key=KEY, organization="org_1", project="proj_1"))
        headers = wire.request("GET", "x").headers
        assert (headers["openai-organization"], headers["openai-project"]) == ("org_1", "proj_1")

    def test_sign_adds_the_key_of_a_function_unless_a_header_has_credentials(self) -> None:
        wire = Wire.from_settings(Settings.openai(api_key=lambda: KEY))
        request = wire.request("GET", "x")
        assert "authorization" not in request.headers
        assert wire.sign(request, KEY).headers["authorization"] == f"Bearer {KEY}"
        own = wire.with_options(headers={"Authorization": "mine"}, query=None).request("GET", "x")
        assert wire.sign(own, KEY).headers["authorization"] == "mine"

    def test_a_key_for_azure_is_sent_as_api_key(self) -> None:
        wire = Wire.from_settings(Settings.azure("https://host", api_key=KEY))
        assert wire.request("GET", "x").headers["api-key"] == KEY

    def test_no_repr_contains_the_key(self) -> None:
        assert KEY not in repr(WIRE)
        assert KEY not in repr(WIRE.request("GET", "x"))


class TestSuccess:
    def test_the_document_and_the_request_id_become_a_response(self) -> None:
        response = decode_answer(200, {"X-Request-Id": "req_1"}, b'{"id": "resp_1", "status": "cancelled"}')
        assert (response.id, response.status, response.request_id) == ("resp_1", "cancelled", "req_1")
        assert response.to_dict() == {"id": "resp_1", "status": "cancelled"}

    @pytest.mark.parametrize(
        "body", [b'{"id": "resp_1"}', b'{"status": "queued"}', b'\xef\xbb\xbf{"id": "x"}', b' {"id": "x"}\n']
    )
    @pytest.mark.parametrize("status", [200, 201, 202])
    def test_an_id_or_a_status_is_enough(self, body: bytes, status: int) -> None:
        assert decode_answer(status, {}, body).request_id is None

    def test_the_request_id_of_azure_is_found(self) -> None:
        assert decode_answer(200, {"apim-request-id": "r"}, b'{"id": "x"}').request_id == "r"

    def test_a_response_with_an_error_inside_is_a_response(self) -> None:
        body = b'{"id": "resp_1", "status": "failed", "error": {"code": "server_error", "message": "No."}}'
        assert decode_answer(200, {}, body).error.message == "No."

    @pytest.mark.parametrize(
        ("body", "words"),
        [
            (b"", "The body is empty"),
            (b" \n", "The body is empty"),
            (b"ok", "The body is not JSON"),
            (b"<html>", "The body is not JSON"),
            (b'{"id": "resp_1"', "The body is not JSON"),
            (b'{"id": "\xff"}', "The body is not JSON"),
            (b"[" * 100_000, "The body is not JSON"),
            (b"null", "The body is not a JSON object"),
            (b"[]", "The body is not a JSON object"),
            (b'"text"', "The body is not a JSON object"),
            (b"{}", "The body has neither an id nor a status"),
            (b'{"id": 5, "status": null}', "The body has neither an id nor a status"),
        ],
    )
    def test_a_success_that_is_no_response_is_an_error_with_its_body(self, body: bytes, words: str) -> None:
        error = decode_failure(body)
        assert (error.message, error.status, error.body, error.request_id) == (words, 200, body, "req_1")

    def test_json_that_orjson_refuses_and_others_write_is_read(self) -> None:
        response = decode_answer(200, {}, b'{"id": "half \\ud83d a pair", "status": "cancelled", "top_p": NaN}')
        assert response.id == "half \ud83d a pair"
        assert response.top_p != response.top_p
        assert decode_error(400, b'{"error": {"message": "\\ud83d", "code": "c"}}').code == "c"

    @pytest.mark.parametrize(
        "body",
        [
            b'{"id": "x", "output": ' + b"[" * 10_000 + b"]" * 10_000 + b"}",
            b'{"id": "x", "text": ' + b'{"a":' * 100_000,
        ],
    )
    def test_a_body_that_is_nested_too_deeply_is_an_error(self, body: bytes) -> None:
        assert decode_failure(body).body == body

    def test_a_body_that_can_be_parsed_but_is_nested_too_deeply_to_copy_is_an_error(self) -> None:
        limit = sys.getrecursionlimit()
        sys.setrecursionlimit(20_000)  # CPython 3.13 takes it as it is
        try:
            decode_failure(b'{"id": "x", "top_p": NaN, "deep": ' + b"[" * 3000 + b"]" * 3000 + b"}")
        finally:
            sys.setrecursionlimit(limit)

    @pytest.mark.parametrize(
        ("body", "problems"),
        [
            (b'{"id": "x", "model": "' + b"a" * 20_000_000 + b'"}', 0),
            (b'{"id": "x", "output": [' + b"{}," * 30_000 + b"5]}", 1),
            (b'{"id": "a", "id": "x"}', 0),
            (b'{"id": "x", "max_output_tokens": 123456789012345678901234567890}', 0),
            (b'{"id": "x", "top_p": -Infinity, "temperature": NaN}', 0),
        ],
        ids=["a long string", "many items", "a key twice", "a long number", "no numbers"],
    )
    def test_a_body_with_extreme_values_is_a_response(self, body: bytes, problems: int) -> None:
        response = decode_answer(200, {}, body)
        assert (response.id, len(response.problems)) == ("x", problems)

    def test_an_answer_without_a_body_is_an_error(self) -> None:
        assert decode_failure(b"", status=204).status == 204

    def test_a_body_over_the_limit_is_named_in_the_error(self) -> None:
        assert "limit of the session" in decode_failure(b"", complete=False).message
        assert decode_error(502, complete=False).message == (
            "Bad Gateway (the body is damaged, or larger than the limit of the session, and was not read)"
        )


class TestErrors:
    @pytest.mark.parametrize(
        ("status", "kind"),
        [
            (400, BadRequestError),
            (401, AuthenticationError),
            (403, PermissionDeniedError),
            (404, NotFoundError),
            (409, ConflictError),
            (422, UnprocessableEntityError),
            (429, RateLimitError),
            (500, InternalServerError),
            (503, InternalServerError),
            (405, UnsupportedError),
            (501, UnsupportedError),
            (599, InternalServerError),
            (402, APIStatusError),
            (418, APIStatusError),
        ],
    )
    def test_each_status_has_its_exception(self, status: int, kind: type[APIStatusError]) -> None:
        error = decode_error(status, {"error": {"message": "No."}})
        assert type(error) is kind
        assert error.status == status

    @pytest.mark.parametrize(("method", "hint"), [("POST", "cannot cancel"), ("GET", "cannot retrieve")])
    def test_the_hint_of_an_unsupported_call_names_the_call(self, method: str, hint: str) -> None:
        error = decode_error(501, request=WIRE.request(method, "resp_1"))
        assert str(error) == f"501: Not Implemented. This server {hint} responses."

    @pytest.mark.parametrize(
        ("body", "message", "code", "type_", "param"),
        [
            # OpenAI and Azure
            (
                {"error": {"message": "No.", "type": "invalid_request_error", "param": "p", "code": "c"}},
                "No.",
                "c",
                "invalid_request_error",
                "p",
            ),
            ({"error": {"code": "404", "message": "Resource not found"}}, "Resource not found", "404", None, None),
            ({"statusCode": 404, "message": "Resource not found"}, "Resource not found", 404, None, None),
            # vLLM: a number as code; a string as error
            ({"error": {"message": "No.", "type": "T", "param": None, "code": 400}}, "No.", 400, "T", None),
            ({"error": "Unauthorized"}, "Unauthorized", None, None, None),
            # old versions of SGLang
            (
                {"object": "error", "message": "No.", "type": "T", "param": None, "code": 400},
                "No.",
                400,
                "T",
                None,
            ),
            # ogx, FastAPI
            ({"detail": "Not found"}, "Not found", None, None, None),
            (
                {
                    "detail": [
                        {"loc": ["path", "id", 0], "msg": "too short", "type": "t"},
                        {"loc": ["query"], "msg": "missing"},
                    ]
                },
                "path.id.0: too short; query: missing",
                None,
                None,
                None,
            ),
            ({"detail": {"error": {"message": "No.", "code": "c"}}}, "No.", "c", None, None),
            ({"detail": {"message": "No.", "code": "c"}}, "No.", "c", None, None),
            ({"detail": [{"loc": [[[]], "a", None], "msg": "No."}]}, "a: No.", None, None, None),
            ({"error": {"message": "No."}}, "No.", None, None, None),
            # Prism: bare, and problem+json
            ({"code": "c", "message": "No.", "param": None, "type": "t"}, "No.", "c", "t", None),
            (
                {"type": "https://example.com/p", "title": "Not found", "status": 404, "detail": "No such response."},
                "No such response.",
                None,
                "https://example.com/p",
                None,
            ),
            ({"type": "about:blank", "title": "Not found", "status": 404}, "Not found", None, "about:blank", None),
            # NestJS, and others
            ({"statusCode": 400, "message": ["a", "b"], "error": "Bad Request"}, "a; b", 400, None, None),
            # no message, so the body itself is used
            ({"error": {"code": True, "type": 5}}, '{"error": {"code": true, "type": 5}}', None, None, None),
            ({"error": {}}, '{"error": {}}', None, None, None),
            ({"error": None, "message": "No."}, "No.", None, None, None),
            ("just words", "just words", None, None, None),
            (["several", "words"], "several; words", None, None, None),
            (5, "5", None, None, None),
            (None, "null", None, None, None),
        ],
    )
    def test_the_details_of_an_error_are_found_in_every_known_form(self, body, message, code, type_, param) -> None:
        error = decode_error(400, body)
        assert (error.message, error.code, error.type, error.param) == (message, code, type_, param)
        assert error.body == json.dumps(body).encode()

    @pytest.mark.parametrize(
        ("body", "message"),
        [
            (b"", "Bad Gateway"),
            (b"Internal Server Error", "Internal Server Error"),
            (b"<!doctype html><HTML><head><title>\n 502 Bad\n Gateway </title>", "502 Bad Gateway"),
            (b"<html><body><p>Oh <b>no</b></p>", "Oh no"),
            (b"<title>Error</title>\n</head>\n<body>\n<pre>Cannot POST /v1</pre>\n</body>", "Cannot POST /v1"),
            (b"<title> ERROR </title>", "Bad Gateway"),
            (b"<title>Error 502</title><p>Oh no</p>", "Error 502"),
            (b"\xff\xfe", "\ufffd\ufffd"),
            (b"<>", "Bad Gateway"),
            (b"x" * 100_000, "x" * MESSAGE_LIMIT),
        ],
    )
    def test_the_message_of_a_body_that_is_not_json_is_its_text(self, body: bytes, message: str) -> None:
        error = decode_error(502, body)
        assert error.message == message
        assert error.body == body

    def test_an_unknown_status_without_a_body_has_a_message(self) -> None:
        assert decode_error(799).message == "The server gave no reason"

    def test_a_deeply_nested_error_is_shown_as_its_text(self) -> None:
        body = b'{"message":' * 900 + b"1" + b"}" * 900
        assert decode_error(400, body).message.startswith('{"message":')

    def test_an_error_that_a_proxy_has_wrapped_is_kept_as_it_is(self) -> None:
        message = 'litellm.BadRequestError: OpenAIException - {"error": {"message": "No."}}'
        error = decode_error(400, {"error": {"message": message, "type": None, "param": None, "code": "400"}})
        assert (error.message, error.code) == (message, "400")

    @pytest.mark.parametrize(
        ("body", "kind"),
        [
            ({"error": {"message": "No.", "code": 404}}, NotFoundError),
            ({"error": {"message": "No.", "code": 503}}, InternalServerError),
            ({"object": "error", "message": "No.", "code": 400}, BadRequestError),
            ({"error": {"message": "No.", "code": "c"}}, APIStatusError),
            ({"error": {"message": "No.", "code": 1013}}, APIStatusError),
            ({"error": "No."}, APIStatusError),
            ({"id": "req_1", "error": {"message": "No.", "code": 404}}, NotFoundError),
            ({"id": "e1", "object": "error", "message": "No.", "code": 404}, NotFoundError),
        ],
    )
    def test_an_error_inside_a_success_is_raised_by_its_code(self, body: object, kind: type[APIStatusError]) -> None:
        error = decode_error(200, body)
        assert type(error) is kind
        assert (error.message, error.status) == ("No.", 200)

    @pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
    def test_a_redirect_is_an_error_that_names_its_target(self, status: int) -> None:
        error = decode_error(status, b"<html>moved", {"Location": "https://elsewhere/v1"})
        assert type(error) is APIStatusError
        assert "redirects to https://elsewhere/v1" in error.message
        assert "set the base URL" in error.message
        assert decode_error(304).message == "Not Modified"

    @pytest.mark.parametrize(
        ("headers", "body", "expected"),
        [
            ({"X-Request-ID": "a", "apim-request-id": "b"}, {}, "a"),
            ({"apim-request-id": "b"}, {}, "b"),
            ({}, {"error": {"message": "", "additionalInfo": {"request_id": "c"}}}, "c"),
            ({}, {"error": {"message": ""}, "request_id": "d"}, "d"),
            ({}, {"error": {"additionalInfo": 5}}, None),
            ({}, {"error": {"additionalInfo": {"request_id": 5}}}, None),
        ],
    )
    def test_the_request_id_is_found_in_headers_and_body(self, headers, body, expected) -> None:
        assert decode_error(400, body, headers).request_id == expected

    @pytest.mark.parametrize(
        ("headers", "seconds"),
        [
            ({}, None),
            ({"Retry-After": "7"}, 7.0),
            ({"Retry-After": "0.5"}, 0.5),
            ({"Retry-After": "-3"}, 0.0),
            ({"Retry-After-Ms": "250", "Retry-After": "7"}, 0.25),
            ({"Retry-After-Ms": "soon", "Retry-After": "7"}, 7.0),
            ({"Retry-After": "nan"}, None),
            ({"Retry-After": "inf"}, None),
            ({"Retry-After": "soon"}, None),
            ({"Retry-After": "Sun, 22 Nov 2026 12:00:30 GMT", "Date": "Sun, 22 Nov 2026 12:00:00 GMT"}, 30.0),
            ({"Retry-After": "Sun, 22 Nov 2026 11:00:00 GMT", "Date": "Sun, 22 Nov 2026 12:00:00 GMT"}, 0.0),
            ({"Retry-After": "Sun, 22 Nov 2026 12:00:30 GMT"}, None),
            ({"Retry-After": "Mon, 01 Jan 99999999999999999999 00:00:00 GMT", "Date": "x"}, None),
            ({"Retry-After": "Sun, 22 Nov 2026 12:00:30 +99999999999999", "Date": "x"}, None),
            ({"Retry-After": "Sun, 22 Nov 2026 12:00:30 -0000", "Date": "Sun, 22 Nov 2026 12:00:00 GMT"}, None),
        ],
    )
    def test_retry_after_is_read_as_seconds(self, headers: dict[str, str], seconds: float | None) -> None:
        assert decode_error(429, headers=headers).retry_after == seconds

    @pytest.mark.parametrize(("value", "expected"), [("true", True), ("False", False), ("maybe", None), (None, None)])
    def test_x_should_retry_is_read_as_a_flag(self, value: str | None, *, expected: bool | None) -> None:
        assert decode_error(409, headers={"x-should-retry": value} if value else {}).should_retry is expected

    def test_the_headers_of_an_error_can_be_read_in_any_case(self) -> None:
        assert (
            decode_error(400, headers={"X-RateLimit-Reset-Requests": "12ms"}).headers["x-ratelimit-reset-requests"]
            == "12ms"
        )

    @pytest.mark.parametrize("body", [{"error": {"message": f"Bad key {KEY}."}}, f"Bad key {KEY}.".encode()])
    def test_the_key_is_removed_from_an_error_that_repeats_it(self, body: object) -> None:
        error = decode_error(401, body, {"x-debug": f"Bearer {KEY}"})
        assert error.message == "Bad key ***."
        assert KEY not in f"{error!s} {error!r} {vars(error)}"

    @pytest.mark.parametrize(
        "shown",
        [
            b"abcd/efg+hij==",
            rb"abcd\/efg\u002Bhij==",
            rb"abcd\u002fefg+hij\u003d\u003D",
            b"abcd%2Fefg%2bhij%3D%3D",
            b"abcd&#47;efg&#43;hij&#x3D;&#61;",
        ],
    )
    @pytest.mark.parametrize(
        "credentials", [{"api_key": "abcd/efg+hij=="}, {"headers": {"Authorization": "Basic abcd/efg+hij=="}}]
    )
    def test_the_key_is_removed_in_every_escaped_form(self, credentials: dict, shown: bytes) -> None:
        request = Wire.from_settings(Settings.openai(**credentials)).request("GET", "x")
        for body in (b'{"error": {"message": "Bad key ' + shown + b'."}}', b"Bad key " + shown + b"."):
            error = decode_error(401, body, {"x-debug": shown.decode()}, request=request)
            assert error.message == "Bad key ***."
            assert error.headers["x-debug"] == "***"
            assert shown not in error.body

    def test_the_key_is_removed_from_a_success_that_repeats_it(self) -> None:
        assert KEY.encode() not in decode_failure(f'{{"key": "{KEY}"}}'.encode()).body

    @pytest.mark.parametrize(
        "options",
        [
            {"headers": {"X-Api-Key": "sub-0123/456"}},
            {"headers": {"Ocp-Apim-Subscription-Key": "sub-0123/456"}},
            {"base_url": "https://h/v1?subscription-key=sub-0123%2F456"},
            {"base_url": "https://h/v1?sig=sub-0123%2F456&api-version=2025-04-01-preview"},
        ],
    )
    def test_other_credentials_are_removed_from_an_error_that_repeats_them(self, options: dict) -> None:
        request = Wire.from_settings(Settings.openai(api_key=KEY, **options)).request("GET", "x")
        body = {"error": {"message": "No sub-0123/456, nor /v1?k=sub-0123%2F456, for 2025-04-01-preview."}}
        error = decode_error(401, body, {"location": "/v1?k=sub-0123%2F456"}, request=request)
        assert error.message == "No ***, nor /v1?k=***, for 2025-04-01-preview."
        assert "sub-0123" not in f"{error!s} {error!r} {vars(error)} {error.to_dict()}"

    def test_a_key_of_digits_is_removed_from_a_number(self) -> None:
        request = Wire.from_settings(Settings.openai(api_key="12345678")).request("GET", "x")
        assert decode_error(400, b'{"error": {"message": "no", "code": 12345678}}', request=request).message.endswith(
            '"code": ***}}'
        )

    def test_a_short_placeholder_for_a_key_is_not_removed_from_messages(self) -> None:
        request = Wire.from_settings(Settings.openai(api_key="none")).request("GET", "x")
        assert decode_error(400, {"error": {"message": "none found"}}, request=request).message == "none found"

    def test_headers_that_are_not_utf_8_are_replaced(self) -> None:
        error = decode_error(404, headers={"x-request-id": b"req-\xff".decode(errors="surrogateescape")})
        assert error.request_id == "req-?"
        str(error).encode()


@given(
    status=st.integers(100, 999),
    headers=st.dictionaries(
        st.sampled_from(["retry-after", "retry-after-ms", "date", "location", "x-should-retry", "x-request-id"]),
        st.text() | st.sampled_from(["Sun, 22 Nov 2026 12:00:30 GMT", "1e400", "-1"]),
    ),
    body=st.binary()
    | st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
        lambda inner: (
            st.lists(inner)
            | st.dictionaries(
                st.sampled_from(
                    ["error", "detail", "message", "code", "loc", "msg", "type", "id", "status", "object", "title"]
                ),
                inner,
            )
        ),
    ).map(lambda document: json.dumps(document).encode()),
)
def test_every_answer_is_a_response_or_an_error_of_this_package(
    status: int, headers: dict[str, str], body: bytes
) -> None:
    result: Response | APIStatusError | ResponseDecodeError
    try:
        result = decode_answer(status, headers, body)
    except (APIStatusError, ResponseDecodeError) as error:
        result = error
    assert str(result)


@needs_shared
@pytest.mark.parametrize("path", sorted(SHARED.glob("corpus/errors/*.json")), ids=lambda path: path.stem)
def test_the_message_and_code_of_a_recorded_error_are_found(path) -> None:
    recorded = json.loads(path.read_bytes())
    body = recorded["body"]
    error = decode_error(recorded["http_status"] or 400, body)
    inner = body.get("error", body) if isinstance(body, dict) else body
    assert error.message == (inner["message"] if isinstance(inner, dict) else inner)
    assert error.code == (inner.get("code") if isinstance(inner, dict) else None)
