"""Responses and outcomes as other libraries serialize them: as their documents, whatever was read before."""

import copy
import inspect
import json
import pickle
from collections.abc import Callable
from typing import Any

import attrs
import cattrs
import msgspec
import orjson
import pytest
from documents import DOCUMENT
from fastapi import FastAPI
from fastapi.encoders import jsonable_encoder
from fastapi.testclient import TestClient
from pydantic import TypeAdapter

from openai_cancel import APIStatusError, Outcome, Response, Verdict, WaitResult
from openai_cancel.converter import response_hook
from openai_cancel.finding import Finding
from openai_cancel.models import Message
from openai_cancel.models.response import record_call
from openai_cancel.models.serialization import Serializable

structure = response_hook()

ERROR = APIStatusError("I am a teapot.", status=418, headers={}, body=b"", code="teapot", request_id="req_1")
ERROR_DOCUMENT = {
    "type": "APIStatusError",
    "message": "418: I am a teapot. (request id req_1)",
    "status": 418,
    "code": "teapot",
    "request_id": "req_1",
}
OUTCOME_DOCUMENT = {
    "response_id": "resp_1",
    "verdict": "already_finished",
    "stopped": True,
    "response": DOCUMENT,
    "error": ERROR_DOCUMENT,
    "attempts": 2,
    "elapsed": 0.5,
    "request_id": "req_1",
}


def outcome(response: Response | None = None) -> Outcome:
    return Outcome(
        response_id="resp_1",
        verdict=Verdict.ALREADY_FINISHED,
        response=structure(DOCUMENT) if response is None else response,
        error=ERROR,
        attempts=2,
        elapsed=0.5,
        request_id="req_1",
    )


def by_default(dumps: Callable[..., Any], default: Callable[[Any], Any]) -> Callable[[Any], Any]:
    return lambda value: json.loads(dumps(value, default=default))


def to_dict(value: Serializable) -> Any:
    return value.to_dict()


def by_own_converter(value: Serializable) -> Any:
    converter = cattrs.Converter()
    converter.register_unstructure_hook(type(value), type(value).to_dict)
    return converter.unstructure({"nested": [value]})["nested"][0]


SERIALIZERS = {
    "to_dict": to_dict,
    "vars": vars,
    "json, vars": by_default(json.dumps, vars),
    "json, __dict__": by_default(json.dumps, lambda value: value.__dict__),
    "orjson, vars": by_default(orjson.dumps, vars),
    "orjson, cattrs": by_default(orjson.dumps, cattrs.unstructure),
    "cattrs": cattrs.unstructure,
    "cattrs, a converter of one's own": by_own_converter,
    "msgspec": lambda value: json.loads(msgspec.json.encode(value, enc_hook=to_dict)),
    "msgspec, built-in types": lambda value: msgspec.to_builtins(value, enc_hook=to_dict),
    "msgspec, MessagePack": lambda value: msgspec.msgpack.decode(msgspec.msgpack.encode(value, enc_hook=to_dict)),
    "pydantic": lambda value: TypeAdapter(type(value)).dump_python(value),
    "pydantic, JSON": lambda value: json.loads(TypeAdapter(type(value)).dump_json(value)),
    "FastAPI's encoder": jsonable_encoder,
}


@pytest.mark.parametrize("serialize", SERIALIZERS.values(), ids=SERIALIZERS)
class TestSerializers:
    def test_a_response_is_its_document_before_and_after_fields_are_read(self, serialize) -> None:
        response = structure(DOCUMENT)
        record_call(response, request_id="req_1", retry_after=1.0, attempts=3)
        assert serialize(response) == DOCUMENT
        assert (response.status, len(response.output), response.problems) == (DOCUMENT["status"], 4, ())
        assert serialize(response) == DOCUMENT

    def test_a_part_of_a_response_is_its_part_of_the_document(self, serialize) -> None:
        for part, document in zip(structure(DOCUMENT).output, DOCUMENT["output"], strict=True):
            assert part.type
            assert serialize(part) == document

    def test_an_outcome_contains_the_documents_of_its_response_and_its_error(self, serialize) -> None:
        assert serialize(outcome()) == OUTCOME_DOCUMENT

    def test_an_outcome_without_response_and_error_has_null_there(self, serialize) -> None:
        empty = attrs.evolve(outcome(), response=None, error=None, verdict=Verdict.UNKNOWN)
        assert serialize(empty) == {
            **OUTCOME_DOCUMENT, "response": None, "error": None, "verdict": "unknown", "stopped": False
        }  # fmt: skip


class TestFastAPI:
    @pytest.fixture
    def client(self) -> TestClient:
        app = FastAPI()

        @app.get("/declared/response")
        async def declared_response() -> Response:
            return structure(DOCUMENT)

        @app.get("/declared/outcomes")
        async def declared_outcomes() -> list[Outcome]:
            return [outcome()]

        @app.get("/undeclared")
        async def undeclared():
            return {"response": structure(DOCUMENT), "outcome": outcome()}

        return TestClient(app)

    def test_handlers_return_responses_and_outcomes(self, client: TestClient) -> None:
        assert client.get("/declared/response").json() == DOCUMENT
        assert client.get("/declared/outcomes").json() == [OUTCOME_DOCUMENT]
        assert client.get("/undeclared").json() == {"response": DOCUMENT, "outcome": OUTCOME_DOCUMENT}

    def test_the_description_of_the_api_includes_them(self, client: TestClient) -> None:
        assert client.get("/openapi.json").json()["paths"].keys() == {
            "/declared/response", "/declared/outcomes", "/undeclared"
        }  # fmt: skip


class TestMsgspec:
    """msgspec would take the values that are in an object's memory, of which an unread response has none."""

    @pytest.mark.parametrize(
        "encode",
        [msgspec.json.encode, msgspec.msgpack.encode, msgspec.to_builtins],
        ids=["JSON", "MessagePack", "built-in"],
    )
    def test_it_refuses_what_it_is_not_told_to_encode(self, encode) -> None:
        response = structure(DOCUMENT)
        result = WaitResult(response_id="resp_1", response=None, error=None)
        finding = Finding(response_id="resp_1", kind="ended", action=None, response=None, outcome=None)
        for value in (response, response.output[1], outcome(), result, finding, Response(id="x"), {"nested": response}):
            assert repr(value)  # reads fields
            with pytest.raises(TypeError, match="Encoding objects of type .* is unsupported"):
                encode(value)

    @pytest.mark.slow
    def test_a_handler_of_litestar_returns_responses_and_outcomes_once_it_is_told_how(self) -> None:
        litestar = pytest.importorskip("litestar")
        testing = pytest.importorskip("litestar.testing")

        async def answer() -> dict[str, Any]:
            return {"response": structure(DOCUMENT), "outcomes": [outcome()]}

        encoders = {Response: Response.to_dict, Outcome: Outcome.to_dict}
        with testing.create_test_client([litestar.get("/")(answer)], type_encoders=encoders) as client:
            assert client.get("/").json() == {"response": DOCUMENT, "outcomes": [OUTCOME_DOCUMENT]}
        with testing.create_test_client([litestar.get("/")(answer)]) as client:
            assert client.get("/").status_code == 500


class TestAttrs:
    @pytest.mark.parametrize("cls", [Response, Message, Outcome, WaitResult, Finding])
    def test_it_knows_the_classes_and_their_fields(self, cls) -> None:
        assert attrs.has(cls)
        assert {"id", "response_id"} & {field.name for field in attrs.fields(cls)}
        assert {*attrs.fields_dict(cls)} <= {*inspect.signature(cls.__init__).parameters}
        assert not attrs.has(Serializable)

    def test_a_class_derived_from_an_outcome_has_its_fields_too(self) -> None:
        @attrs.frozen(kw_only=True)
        class Labelled(Outcome):
            label: str

        class Plain(Outcome):
            pass

        assert attrs.fields(Plain) == attrs.fields(Outcome)
        fields = {field.name: getattr(outcome(), field.name) for field in attrs.fields(Outcome)}
        assert attrs.asdict(Labelled(**fields, label="a"), recurse=False) == {**fields, "label": "a"}

    def test_asdict_has_the_declared_fields_and_nothing_of_the_call(self) -> None:
        response = structure({"id": "x", "usage": {"total_tokens": 7}, "new": 1})
        record_call(response, request_id="req_1", attempts=3)
        for _ in range(2):
            declared = attrs.asdict(response, filter=lambda _, value: value is not None)
            assert declared == {"id": "x", "usage": {"total_tokens": 7}}
            assert response.usage.total_tokens == 7

    def test_an_outcome_is_copied_and_pickled_with_its_response(self) -> None:
        original = outcome(Response(id="resp_1"))
        for again in (copy.copy(original), copy.deepcopy(original), pickle.loads(pickle.dumps(original))):
            assert attrs.evolve(again, error=None) == attrs.evolve(original, error=None)
            assert str(again.error) == str(ERROR)


def test_an_object_made_by_hand_has_its_fields_as_attributes() -> None:
    response = Response(id="x", output=[Message(id="msg_1")])
    assert {name: value for name, value in vars(response).items() if value is not None} == {
        "id": "x", "output": [Message(id="msg_1")]
    }  # fmt: skip
    assert cattrs.unstructure(response) == {"id": "x", "output": [{"type": "message", "id": "msg_1"}]}


def test_cattrs_structures_a_response_without_preparation() -> None:
    assert cattrs.structure({"response": DOCUMENT}, dict[str, Response]) == {"response": structure(DOCUMENT)}


def test_a_serializable_needs_a_document() -> None:
    with pytest.raises(NotImplementedError):
        Serializable().to_dict()
