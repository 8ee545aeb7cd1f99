"""The conveniences of a response: properties, repr, equality, copies, conversion to a dict."""

import collections
import copy
import http
import math
import pickle
from datetime import UTC, datetime
from unittest.mock import ANY

import attrs
import pytest
from documents import DOCUMENT

from openai_cancel import models
from openai_cancel.converter import response_hook
from openai_cancel.models import (
    FunctionCall,
    IncompleteDetails,
    InputTokensDetails,
    Message,
    OutputText,
    OutputTokensDetails,
    Response,
    ResponseError,
    Usage,
)
from openai_cancel.models.response import record_call

structure = response_hook()


def test_extra_has_the_members_without_a_field() -> None:
    response = structure(DOCUMENT)
    assert response.extra == {"kv_transfer_params": {"vllm": "only"}}
    assert response.output[2].extra == {"new_field": [1]}
    assert response.output[3].extra == {"deep": {"er": [1, 2, {}]}}
    assert Response(id="x").extra == {}


@pytest.mark.parametrize(
    ("status", "expected"),
    [
        ("completed", True),
        ("failed", True),
        ("cancelled", True),
        ("incomplete", True),
        ("queued", False),
        ("in_progress", False),
        ("cancelling", False),
        (None, False),
    ],
)
def test_is_terminal_follows_the_status(status, expected) -> None:
    assert Response(id="x", status=status).is_terminal is expected


def test_output_text_joins_the_text_of_all_messages() -> None:
    assert structure(DOCUMENT).output_text == "Forty-two"
    assert structure({"id": "x"}).output_text == ""
    empty = {"id": "x", "output": [{"type": "message"}, {"type": "message", "content": [{"type": "output_text"}]}]}
    assert structure(empty).output_text == ""


def test_items_returns_the_output_items_of_a_class() -> None:
    [call] = structure(DOCUMENT).items(FunctionCall)
    assert call.call_id == "c"
    assert structure({"id": "x"}).items(Message) == []


def test_created_and_completed_are_times_in_utc() -> None:
    response = structure(DOCUMENT)
    assert response.created == datetime(2025, 3, 8, 23, 32, 57, tzinfo=UTC)
    assert response.completed == datetime(2025, 3, 8, 23, 32, 58, 500_000, tzinfo=UTC)
    assert Response(id="x").created is None
    for beyond in (1e300, -1e18, math.inf, math.nan):
        assert Response(id="x", created_at=beyond).created is None


def test_a_repr_is_short_even_for_a_hostile_document() -> None:
    assert repr(structure(DOCUMENT)) == (
        "Response(id='resp_1', status='completed', model='gpt-4o', "
        "output=['reasoning', 'message', 'function_call', 'some_future_type'], total_tokens=380)"
    )
    hostile = {
        "id": "\ud800",
        "model": "m" * 1000,
        "output": [{"type": "\n"}] * 1000,
        "usage": {"total_tokens": 9**999},
    }
    shown = repr(structure(hostile))
    assert shown.startswith(r"Response(id='\ud800', status=None, model='mmm")
    assert r"['\n', '\n'" in shown
    assert len(shown) < 400
    assert repr(structure({"id": "x", "model": 5})) == "Response(id='x', status=None, problems=1)"
    assert repr(Usage(input_tokens=1)) == "Usage(input_tokens=1)"
    assert repr(structure(DOCUMENT).output[3]).startswith("Unknown(type='some_future_type', raw={'deep'")
    assert len(repr(OutputText(text="x" * 1000))) < 120
    assert dict(Usage(input_tokens=1).__rich_repr__()) == {"input_tokens": 1}


def test_objects_are_equal_if_their_documents_are_and_have_no_hash() -> None:
    assert structure(DOCUMENT) == structure(copy.deepcopy(DOCUMENT))
    assert structure({"id": "x"}) != structure({"id": "x", "error": None})
    assert structure({"id": "x"}) != structure({"id": "x", "unknown": 1})
    assert structure({"id": "x"}) == Response(id="x")
    assert structure({"id": "x"}) != {"id": "x"}
    assert structure({"id": "x"}) == ANY
    assert structure(DOCUMENT).usage == Usage(
        input_tokens=328,
        input_tokens_details=InputTokensDetails(cached_tokens=0),
        output_tokens=52,
        output_tokens_details=OutputTokensDetails(reasoning_tokens=0),
        total_tokens=380,
    )
    with pytest.raises(TypeError, match="unhashable"):
        hash(structure(DOCUMENT))


@pytest.mark.parametrize("clone", [copy.copy, copy.deepcopy, lambda it: pickle.loads(pickle.dumps(it))])
def test_a_copy_or_a_pickle_equals_the_original(clone) -> None:
    response = structure({**DOCUMENT, "store": "yes"})
    same = clone(response)
    assert same == response
    assert same.problems == response.problems
    assert same.output[1].content[0] == response.output[1].content[0]


def test_a_response_is_frozen_and_changes_to_its_values_do_not_reach_the_document() -> None:
    response = structure(copy.deepcopy(DOCUMENT))
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        response.status = "queued"
    response.to_dict()["output"].clear()
    response.output.clear()
    response.metadata["c"] = "d"
    response.extra["kv_transfer_params"].clear()
    assert response.to_dict() == DOCUMENT


def test_attrs_evolve_returns_a_response_without_the_old_document() -> None:
    response = attrs.evolve(structure({"id": "x", "status": "queued", "unknown": 1}), status="cancelled")
    assert response.to_dict() == {"id": "x", "status": "cancelled"}


def test_to_dict_of_a_response_made_by_hand_has_the_fields_that_are_set() -> None:
    response = Response(
        id="x",
        output=[Message(content=[OutputText(text="hi")]), FunctionCall(async_=True)],
        error=ResponseError(code="c"),
        incomplete_details=IncompleteDetails(reason="r"),
        metadata={"a": "b"},
    )
    assert response.to_dict() == {
        "id": "x",
        "output": [
            {"type": "message", "content": [{"type": "output_text", "text": "hi"}]},
            {"type": "function_call", "async": True},
        ],
        "error": {"code": "c"},
        "incomplete_details": {"reason": "r"},
        "metadata": {"a": "b"},
    }
    assert structure(response.to_dict()) == response


def test_to_dict_turns_enum_members_and_subclasses_into_plain_json() -> None:
    usage = Usage(input_tokens=http.HTTPStatus.OK, output_tokens=5)
    assert repr(usage.to_dict()) == "{'input_tokens': 200, 'output_tokens': 5}"
    tool = models.FunctionTool(parameters=collections.OrderedDict(a=True, b=1.5), strict=False)
    assert repr(tool.to_dict()) == "{'type': 'function', 'parameters': {'a': True, 'b': 1.5}, 'strict': False}"


def test_to_dict_of_a_response_made_by_hand_accepts_models_in_maps_and_tuples() -> None:
    prompt = models.Prompt(id="p", variables={"a": models.InputText(text="x"), "b": "y"})
    assert prompt.to_dict() == {"id": "p", "variables": {"a": {"type": "input_text", "text": "x"}, "b": "y"}}
    response = Response(status=http.HTTPMethod.GET, output=(Message(),))
    assert response.to_dict() == {"status": "GET", "output": [{"type": "message"}]}


def test_a_model_cannot_be_subclassed() -> None:
    with pytest.raises(TypeError, match="Response cannot be subclassed"):
        type("Mine", (Response,), {})


def test_record_call_sets_the_fields_that_describe_the_call() -> None:
    response = structure({"id": "x", "request_id": "of the document", "attempts": 7})
    assert (response.request_id, response.retry_after, response.attempts) == (None, None, 0)
    record_call(response, request_id="req_1", retry_after=0.5)
    record_call(response, attempts=2)
    assert (response.request_id, response.retry_after, response.attempts) == ("req_1", 0.5, 2)
    assert response.extra == {"request_id": "of the document", "attempts": 7}
