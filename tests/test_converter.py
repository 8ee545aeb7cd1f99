"""From documents to classes: strict, open, forgiving, lossless, lazy."""

import collections
import copy
import http
import inspect
import math
import os
import pickle
import pydoc
import subprocess
import sys
import tracemalloc
import typing
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from threading import Barrier, Event
from types import FrameType
from typing import Any, ClassVar
from unittest.mock import ANY

import attrs
import cattrs
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from openai_cancel import models
from openai_cancel.converter import _kinds, configure_converter, make_converter, response_hook
from openai_cancel.models import (
    ComparisonFilter,
    CompoundFilter,
    FunctionCall,
    IncompleteDetails,
    InputMessage,
    InputTokensDetails,
    InputTransformation,
    ItemReference,
    Message,
    OutputText,
    OutputTokensDetails,
    Problem,
    Reasoning,
    ReasoningConfig,
    Refusal,
    Response,
    ResponseError,
    SummaryText,
    Unknown,
    URLCitation,
    Usage,
)
from openai_cancel.models.shared import Model

structure = response_hook()

DOCUMENT: dict[str, Any] = {
    "id": "resp_1",
    "object": "response",
    "created_at": 1741476777,
    "completed_at": 1741476778.5,
    "status": "completed",
    "background": True,
    "error": None,
    "model": "gpt-4o",
    "metadata": {"a": "b"},
    "output": [
        {"type": "reasoning", "id": "rs_1", "summary": [{"type": "summary_text", "text": "Hm."}], "content": []},
        {
            "type": "message",
            "id": "msg_1",
            "status": "completed",
            "role": "assistant",
            "content": [
                {
                    "type": "output_text",
                    "text": "Forty",
                    "annotations": [{"type": "url_citation", "url": "https://e.x", "start_index": 0, "end_index": 5}],
                    "logprobs": [{"token": "a", "logprob": -0.5, "bytes": [97], "top_logprobs": []}],
                },
                {"type": "refusal", "refusal": "No."},
                {"type": "output_text", "text": "-two"},
            ],
        },
        {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}", "async": True, "new_field": [1]},
        {"type": "some_future_type", "deep": {"er": [1, 2, {}]}},
    ],
    "usage": {
        "input_tokens": 328,
        "input_tokens_details": {"cached_tokens": 0},
        "output_tokens": 52,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": 380,
    },
    "temperature": 1,
    "kv_transfer_params": {"vllm": "only"},
}


class TestTypes:
    def test_everything_known_is_typed(self) -> None:
        response = structure(DOCUMENT)
        assert isinstance(response, Response)
        reasoning, message, call, future = response.output
        assert isinstance(reasoning, Reasoning)
        assert isinstance(reasoning.summary[0], SummaryText)
        assert isinstance(message, Message)
        assert [type(part) for part in message.content] == [OutputText, Refusal, OutputText]
        assert isinstance(message.content[0].annotations[0], URLCitation)
        assert message.content[0].logprobs[0].bytes == [97]
        assert isinstance(call, FunctionCall)
        assert call.async_ is True
        assert isinstance(future, Unknown)
        assert (future.type, future.raw) == ("some_future_type", DOCUMENT["output"][3])
        assert (response.usage.total_tokens, response.usage.input_tokens_details.cached_tokens) == (380, 0)
        assert response.problems == ()

    def test_null_and_absent_are_none_and_told_apart_by_the_document(self) -> None:
        response = structure({"id": "x", "error": None})
        assert (response.error, response.usage) == (None, None)
        assert response.to_dict() == {"id": "x", "error": None}

    def test_what_is_empty_is_not_none(self) -> None:
        response = structure({"id": "x", "tools": [], "metadata": {}, "prompt": {"variables": {}}, "reasoning": {}})
        assert (response.tools, response.metadata, response.prompt.variables) == ([], {}, {})
        assert response.reasoning == ReasoningConfig()

    def test_what_says_no_type(self) -> None:
        document = {
            "id": "x",
            "instructions": [{"role": "user", "content": "Hi."}, {"id": "msg_1"}, {}, {"type": None, "id": "msg_2"}],
            "input_transformations": [{"id": "rs_1"}],
        }
        response = structure(document)
        message, reference, neither, null = response.instructions
        assert isinstance(message, InputMessage)
        assert (type(reference), type(null)) == (ItemReference, ItemReference)
        assert isinstance(neither, Unknown)
        assert isinstance(response.input_transformations[0], InputTransformation)
        assert response.problems == ()

    def test_patterns_match(self) -> None:
        match structure(DOCUMENT).output[1]:
            case Message(content=[OutputText(text=text), *_]):
                assert text == "Forty"
            case _:
                pytest.fail("no match")

    @pytest.mark.parametrize(
        ("field", "value", "expected"),
        [
            ("id", 5, "string"),
            ("id", True, "string"),
            ("background", "false", "boolean"),
            ("background", 1, "boolean"),
            ("max_tool_calls", "5", "integer"),
            ("max_tool_calls", 5.0, "integer"),
            ("max_tool_calls", True, "integer"),
            ("temperature", "1", "number"),
            ("temperature", False, "number"),
            ("usage", [], "object"),
            ("output", {}, "array"),
            ("tool_choice", 5, "string or object"),
            ("instructions", {}, "string or array"),
            ("metadata", "a", "object"),
        ],
    )
    def test_nothing_is_coerced(self, field: str, value: object, expected: str) -> None:
        document = {"status": "queued", field: value}
        response = structure(document)
        assert getattr(response, field) is None
        assert response.problems == (Problem(f"$.{field}", expected),)
        assert response.to_dict() == document

    def test_an_integer_is_a_number_and_stays_one(self) -> None:
        assert repr(structure({"id": "x", "temperature": 1}).temperature) == "1"

    def test_damage_deep_inside_leaves_the_rest_typed(self) -> None:
        document = copy.deepcopy(DOCUMENT)
        document["output"][1]["content"][0]["annotations"][0]["start_index"] = "0"
        document["output"][1]["content"][0]["logprobs"] = [{"bytes": ["1", 2, "3"]}, 7]
        document["output"][1]["content"][1] = "stray"
        document["output"].append(None)
        document["output"].append({"type": ["list"], "raw": 1})
        document["metadata"] = {"none": [], "fine": "yes", "two words": 5}
        document["usage"]["total_tokens"] = None
        document["usage"]["input_tokens_details"] = 5
        response = structure(document)
        assert {(problem.path, problem.expected) for problem in response.problems} == {
            ("$.output[1].content[0].annotations[0].start_index", "integer"),
            ("$.output[1].content[0].logprobs[0].bytes[0]", "integer"),
            ("$.output[1].content[0].logprobs[0].bytes[2]", "integer"),
            ("$.output[1].content[0].logprobs[1]", "object"),
            ("$.output[1].content[1]", "object"),
            ("$.output[4]", "object"),
            ("$.output[5].type", "string"),
            ("$.metadata.none", "string"),
            ("$.metadata['two words']", "string"),
            ("$.usage.input_tokens_details", "object"),
        }
        message = response.output[1]
        assert message.content[0].annotations[0].end_index == 5
        assert message.content[1].raw == "stray"
        assert message.content[1].extra == {}
        assert message.content[1].to_dict() == "stray"
        assert response.output[4].raw is None
        assert response.output_text == "Forty-two"
        assert response.usage.output_tokens == 52
        assert response.to_dict() == document

    def test_what_is_wrong_in_a_map_or_a_list_is_left_out_of_it(self) -> None:
        document = {
            "id": "x",
            "metadata": {"fine": "yes", "wrong": 3},
            "prompt": {"variables": {"a": 5, "b": {"type": "input_text", "text": 7}, "c": "fine"}},
            "output": [{"type": "file_search_call", "queries": ["one", 2, "three"]}],
            "moderation": {
                "input": {
                    "type": "moderation_result",
                    "category_applied_input_types": {"violence": ["text", 5], "hate": 7, "self-harm": ["image"]},
                }
            },
        }
        response = structure(document)
        assert response.metadata == {"fine": "yes"}
        assert (list(response.prompt.variables), response.prompt.variables["c"]) == (["b", "c"], "fine")
        assert isinstance(response.prompt.variables["b"], models.InputText)
        assert response.output[0].queries == ["one", "three"]
        applied = response.moderation.input.category_applied_input_types
        assert applied == {"violence": ["text"], "self-harm": ["image"]}
        assert {(problem.path, problem.expected) for problem in response.problems} == {
            ("$.metadata.wrong", "string"),
            ("$.prompt.variables.a", "string or object"),
            ("$.prompt.variables.b.text", "string"),
            ("$.output[0].queries[1]", "string"),
            ("$.moderation.input.category_applied_input_types.violence[1]", "string"),
            ("$.moderation.input.category_applied_input_types.hate", "array"),
        }
        assert response.to_dict() == document

    def test_filters_in_filters(self) -> None:
        def nested(levels: int) -> Response:
            whole: dict[str, Any] = {"type": "eq", "key": 5}
            for _ in range(levels):
                whole = {"type": "and", "filters": [whole]}
            return structure({"id": "x", "tools": [{"type": "file_search", "filters": whole}]})

        def innermost(response: Response) -> tuple[int, Model]:
            one, levels = response.tools[0].filters, 0
            while isinstance(one, CompoundFilter):
                one, levels = one.filters[0], levels + 1
            return levels, one

        levels, found = innermost(nested(32))
        assert (levels, type(found)) == (32, ComparisonFilter)
        deep = nested(400)
        levels, found = innermost(deep)
        assert (levels, type(found)) == (32, Unknown)
        assert deep.problems == (Problem("$.tools[0].filters" + ".filters[0]" * 32, "fewer levels"),)
        for other in (copy.copy(deep), copy.deepcopy(deep), pickle.loads(pickle.dumps(deep))):
            assert other == deep
            assert other.problems == deep.problems
        assert nested(32).problems == (Problem("$.tools[0].filters" + ".filters[0]" * 32 + ".key", "string"),)

    def test_a_long_key_is_not_repeated_for_each_problem(self) -> None:
        applied = {"k" * 5000: [5] * 1000}
        result = {"type": "moderation_result", "category_applied_input_types": applied}
        problems = structure({"id": "x", "moderation": {"input": result}}).problems
        assert len(problems) == 1000
        assert all(len(problem.path) < 200 for problem in problems)

    def test_what_no_class_describes_is_not_searched_for_problems(self) -> None:
        parameters = {"k" * 10_000: [[0]] * 10_000}
        response = structure({"id": "x", "tools": [{"type": "function", "parameters": parameters, "strict": "y"}]})
        tracemalloc.start()
        assert response.problems == (Problem("$.tools[0].strict", "boolean"),)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert peak < 10_000_000  # with the path of each it would be 100 MB

    def test_a_key_of_a_map_that_is_a_name(self) -> None:
        assert structure({"id": "x", "metadata": {"a": 1}}).problems == (Problem("$.metadata.a", "string"),)

    def test_names_that_python_uses_do_no_harm(self) -> None:
        document = {"id": "x", "__class__": "y", "_document": 1, "_problems": 2, "request_id": "z", "to_dict": 3}
        response = structure(document)
        assert response.to_dict() == document
        assert (response.request_id, response.extra) == (None, {k: v for k, v in document.items() if k != "id"})

    def test_deep_documents_come_back_too(self) -> None:
        document = orjson.loads(b'{"id": "x", "deep": ' + b"[" * 1000 + b"]" * 1000 + b"}")
        assert orjson.dumps(structure(document).to_dict()["id"]) == b'"x"'
        assert "deep" in structure(document).extra
        deep = orjson.loads(b"[" * 900 + b"]" * 900)
        tool = structure({"id": "x", "tools": [{"type": "function", "parameters": deep, "name": 5}]})
        assert tool.problems == (Problem("$.tools[0].name", "string"),)
        assert repr(Unknown(raw=document))
        for again in (copy.deepcopy(structure(document)), pickle.loads(pickle.dumps(structure(document)))):
            assert again.to_dict().keys() == {"id", "deep"}

    def test_what_is_no_object_at_all(self) -> None:
        with pytest.raises(TypeError, match="a Response is made of a dict, not of list"):
            structure([])


class TestConveniences:
    def test_extra_holds_what_no_field_does(self) -> None:
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
    def test_is_terminal(self, status: str | None, expected: bool) -> None:  # noqa: FBT001
        assert Response(id="x", status=status).is_terminal is expected

    def test_output_text(self) -> None:
        assert structure(DOCUMENT).output_text == "Forty-two"
        assert structure({"id": "x"}).output_text == ""
        empty = {"id": "x", "output": [{"type": "message"}, {"type": "message", "content": [{"type": "output_text"}]}]}
        assert structure(empty).output_text == ""

    def test_items_of_a_kind(self) -> None:
        [call] = structure(DOCUMENT).items(FunctionCall)
        assert call.call_id == "c"
        assert structure({"id": "x"}).items(Message) == []

    def test_moments(self) -> None:
        response = structure(DOCUMENT)
        assert response.created == datetime(2025, 3, 8, 23, 32, 57, tzinfo=UTC)
        assert response.completed == datetime(2025, 3, 8, 23, 32, 58, 500_000, tzinfo=UTC)
        assert Response(id="x").created is None
        for beyond in (1e300, -1e18, math.inf, math.nan):
            assert Response(id="x", created_at=beyond).created is None

    def test_a_short_repr(self) -> None:
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

    def test_equality_is_that_of_documents(self) -> None:
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
    def test_copies_and_pickles(self, clone) -> None:
        response = structure({**DOCUMENT, "store": "yes"})
        same = clone(response)
        assert same == response
        assert same.problems == response.problems
        assert same.output[1].content[0] == response.output[1].content[0]

    def test_it_is_frozen_and_its_document_is_ours(self) -> None:
        response = structure(copy.deepcopy(DOCUMENT))
        with pytest.raises(attrs.exceptions.FrozenInstanceError):
            response.status = "queued"
        response.to_dict()["output"].clear()
        response.output.clear()
        response.metadata["c"] = "d"
        response.extra["kv_transfer_params"].clear()
        assert response.to_dict() == DOCUMENT

    def test_an_evolved_one_is_another_document(self) -> None:
        response = attrs.evolve(structure({"id": "x", "status": "queued", "unknown": 1}), status="cancelled")
        assert response.to_dict() == {"id": "x", "status": "cancelled"}

    def test_one_made_by_hand(self) -> None:
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

    def test_one_made_by_hand_of_kinds_of_strings_and_numbers(self) -> None:
        usage = Usage(input_tokens=http.HTTPStatus.OK, output_tokens=5)
        assert repr(usage.to_dict()) == "{'input_tokens': 200, 'output_tokens': 5}"
        tool = models.FunctionTool(parameters=collections.OrderedDict(a=True, b=1.5), strict=False)
        assert repr(tool.to_dict()) == "{'type': 'function', 'parameters': {'a': True, 'b': 1.5}, 'strict': False}"

    def test_one_made_by_hand_of_other_types(self) -> None:
        prompt = models.Prompt(id="p", variables={"a": models.InputText(text="x"), "b": "y"})
        assert prompt.to_dict() == {"id": "p", "variables": {"a": {"type": "input_text", "text": "x"}, "b": "y"}}
        response = Response(status=http.HTTPMethod.GET, output=(Message(),))
        assert response.to_dict() == {"status": "GET", "output": [{"type": "message"}]}

    def test_it_cannot_be_subclassed(self) -> None:
        with pytest.raises(TypeError, match="Response cannot be subclassed"):
            type("Mine", (Response,), {})


class TestConverter:
    def test_a_converter_of_ones_own(self) -> None:
        @attrs.define
        class Stored:
            key: str
            response: Response

        converter = cattrs.Converter()
        configure_converter(converter)
        stored = converter.structure({"key": "k", "response": DOCUMENT}, Stored)
        assert stored.response == structure(DOCUMENT)
        assert converter.unstructure(stored) == {"key": "k", "response": DOCUMENT}

    def test_unions_and_unknown_on_their_own(self) -> None:
        converter = make_converter()
        message = DOCUMENT["output"][1]
        assert isinstance(converter.structure(message, models.OutputItem), Message)
        assert converter.structure([message, {"type": "q"}], list[models.OutputItem])[1] == Unknown(
            type="q", raw={"type": "q"}
        )
        assert converter.structure({"type": "q"}, Unknown).raw == {"type": "q"}

    def test_it_reads_and_writes_json(self) -> None:
        converter = make_converter()
        assert orjson.loads(converter.dumps(structure(DOCUMENT))) == DOCUMENT
        assert converter.loads(orjson.dumps(DOCUMENT), Response) == structure(DOCUMENT)

    def test_a_field_without_a_rule_is_the_authors_mistake(self) -> None:
        with pytest.raises(TypeError, match="no rule for a field of type <class 'set'>"):
            _kinds(set, {})

    def test_no_class_is_made_before_a_document_needs_it(self, python: str) -> None:
        script = """
from openai_cancel import models
from openai_cancel.converter import response_hook
classes = {name: getattr(models, name) for name in models.__all__ if isinstance(getattr(models, name), type)}
def made(): return {name for name, cls in classes.items() if "__attrs_attrs__" in vars(cls)} - {"Problem"}
assert made() == set(), made()
response_hook()({"id": "x", "output": [], "tools": []})
assert made() == {"Response"}, made()
response = response_hook()({"id": "x", "usage": {"total_tokens": 1}})
assert made() == {"Response"}, made()
response.usage
assert made() == {"Response", "Usage"}, made()
response_hook()({"id": "x", "output": [{"type": "message", "content": [{"type": "refusal"}]}]}).output[0].content
assert made() == {"Response", "Usage", "Message", "Refusal"}, made()
models.Point(x=1)
assert made() == {"Response", "Usage", "Message", "Refusal", "Point"}, made()
"""
        subprocess.run([python, "-c", script], check=True)


def test_classes_that_many_threads_use_first_at_once(python: str) -> None:
    script = """
import sys, threading
from concurrent.futures import ThreadPoolExecutor
from openai_cancel import models
from openai_cancel.models.shared import Model
sys.setswitchinterval(1e-6)
classes = [cls for cls in vars(models).values() if isinstance(cls, type) and issubclass(cls, Model)]
start = threading.Barrier(8)
def use():
    start.wait()
    return [repr(cls()) for cls in classes]
with ThreadPoolExecutor(8) as threads:
    outcomes = [future.result() for future in [threads.submit(use) for _ in range(8)]]
assert all(outcome == outcomes[0] for outcome in outcomes)
"""
    subprocess.run([python, "-c", script], check=True)


def test_a_class_that_another_thread_has_just_made_is_left_as_it_is() -> None:
    made = attrs.fields(Response)
    assert vars(Model)["__attrs_attrs__"].__get__(None, Response) is made
    assert attrs.fields(Response) is made


def test_a_pickle_is_read_where_no_class_has_been_made(python: str) -> None:
    response = structure(DOCUMENT)
    script = f"""
import pickle, attrs
usage = pickle.loads({pickle.dumps(response.usage)!r})
for change in (lambda: setattr(usage, "total_tokens", 1), lambda: delattr(usage, "total_tokens")):
    try:
        change()
    except attrs.exceptions.FrozenInstanceError:
        continue
    raise AssertionError
print(pickle.loads({pickle.dumps(response)!r}).output_text)
"""
    done = subprocess.run([python, "-c", script], check=True, capture_output=True, text=True)
    assert done.stdout == "Forty-two\n"


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


def places(document: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    inner = (
        document.items() if isinstance(document, dict) else enumerate(document) if isinstance(document, list) else ()
    )
    return [path, *(place for key, value in inner for place in places(value, (*path, key)))]


@given(data=st.data(), junk=JSON)
def test_damage_anywhere_never_fails_and_loses_nothing(data: st.DataObject, junk: Any) -> None:
    document = copy.deepcopy(DOCUMENT)
    *path, last = data.draw(st.sampled_from(places(document)[1:]))
    parent = document
    for step in path:
        parent = parent[step]
    parent[last] = junk
    response = structure(document)
    assert response.to_dict() == document
    spot = "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in (*path, last))
    assert all(problem.path.startswith(f"${spot}") for problem in response.problems)
    repr(response)
    assert isinstance(response.output_text, str)


class TestLaziness:
    """Nothing of it can be seen but in the time that it takes."""

    DOCUMENT: ClassVar[dict[str, Any]] = {
        "id": "resp_1",
        "status": "completed",
        "temperature": "warm",
        "usage": {"total_tokens": 7},
        "tools": ["hammer", 5],
        "error": [],
        "output": [{"type": "message", "content": [{"type": "output_text", "text": "hi"}]}] * 20,
    }

    def test_a_status_costs_no_output(self) -> None:
        response = structure(self.DOCUMENT)
        assert "status" not in vars(response)
        assert response.status == "completed"
        assert "output" not in vars(response)
        assert response.output[0].content[0].text == "hi"
        assert response.output is response.output

    def test_no_list_in_it_can_fail_as_a_whole(self) -> None:
        lists = [
            member
            for field in attrs.fields(attrs.resolve_types(Response))
            for member in (field.type, *typing.get_args(field.type))
            if typing.get_origin(member) is list
        ]
        assert len(lists) == 4
        assert all(Unknown in typing.get_args(*typing.get_args(member)) for member in lists)

    def test_problems_are_all_there_and_once(self) -> None:
        for read in ((), ("tools", "usage"), ("temperature", "tools", "error", "output")):
            response = structure(self.DOCUMENT)
            for name in read:
                getattr(response, name)
            problems = [(problem.path, problem.expected) for problem in response.problems]
            assert sorted(problems) == [
                ("$.error", "object"), ("$.temperature", "number"), ("$.tools[0]", "object"), ("$.tools[1]", "object")
            ]  # fmt: skip
            assert [(problem.path, problem.expected) for problem in response.problems] == problems

    @pytest.mark.parametrize("read", [(), ("status",), ("output", "problems")])
    @pytest.mark.parametrize(
        "duplicate",
        [lambda whole: pickle.loads(pickle.dumps(whole)), copy.copy, copy.deepcopy, attrs.evolve],
    )
    def test_copies(self, duplicate, read: tuple[str, ...]) -> None:
        response = structure(self.DOCUMENT)
        for name in read:
            getattr(response, name)
        again = duplicate(response)
        for field in attrs.fields(Response):
            assert getattr(again, field.name) == getattr(response, field.name)
        assert (again.output[0].content[0].text, again.usage.total_tokens) == ("hi", 7)

    @pytest.mark.parametrize("duplicate", [lambda whole: pickle.loads(pickle.dumps(whole)), copy.copy, copy.deepcopy])
    def test_copies_of_one_made_by_hand(self, duplicate) -> None:
        again = duplicate(Response(id="x", output=[Message(id="msg_1")]))
        assert again == Response(id="x", output=[Message(id="msg_1")])
        assert again.output[0].id == "msg_1"

    def test_copies_know_of_the_call(self) -> None:
        response = structure(self.DOCUMENT)
        vars(response).update(request_id="req_1", attempts=2)  # as a session does
        again = pickle.loads(pickle.dumps(response))
        assert (again.request_id, again.attempts, again.retry_after) == ("req_1", 2, None)

    def test_what_there_is_not(self) -> None:
        response = structure(self.DOCUMENT)
        assert not hasattr(response, "nothing")
        with pytest.raises(AttributeError, match="'Response' object has no attribute 'nothing'"):
            response.nothing  # noqa: B018 - is what raises
        with pytest.raises(AttributeError):
            response.usage.nothing  # noqa: B018 - is what raises
        assert not hasattr(Response.__new__(Response), "status")

    def test_fields_can_be_completed_before_they_are_made(self) -> None:
        response = structure(self.DOCUMENT)
        assert {field.name for field in attrs.fields(Response)} <= set(dir(response))
        assert "status" not in vars(response)

    def test_the_class_can_be_inspected(self) -> None:
        structure(self.DOCUMENT)
        assert {field.name for field in attrs.fields(Response)} <= dict(inspect.getmembers(Response)).keys()
        assert "completed_at" in pydoc.render_doc(Response)

    @pytest.mark.parametrize("made_before", [False, True])
    def test_a_handler_of_a_signal_that_reads_what_is_being_made(self, made_before) -> None:
        response = structure(self.DOCUMENT)
        if made_before:
            assert response.status == "completed"
        seen: list[Any] = []

        def handle(frame: FrameType, event: str, _: object) -> None:  # as Python runs one: between two steps
            if not seen and event == "return" and frame.f_code.co_name == "structure":
                seen.append(None)
                seen[:] = response.output, response.usage

        sys.setprofile(handle)
        try:
            output, usage = response.output, response.usage
        finally:
            sys.setprofile(None)
        assert (output, usage) == (seen[0], seen[1])
        assert output is seen[0]
        assert usage is seen[1]
        assert len(response.problems) == 4

    @pytest.mark.skipif(not hasattr(os, "fork"), reason="needs a fork")
    @pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")  # has threads, which is what this is about
    def test_a_fork_while_another_thread_makes_fields(self) -> None:
        response = structure(self.DOCUMENT)
        making, forked = Event(), Event()

        def read() -> None:
            def pause(frame: FrameType, event: str, _: object) -> None:
                if event == "return" and frame.f_code.co_name == "structure":
                    sys.setprofile(None)
                    making.set()
                    forked.wait()

            sys.setprofile(pause)
            response.output  # noqa: B018 - makes them

        with ThreadPoolExecutor(1) as pool:
            reading = pool.submit(read)
            making.wait()
            child = os.fork()
            if not child:
                made = 0
                try:
                    made = len(response.output)
                finally:
                    os._exit(made)
            forked.set()
            reading.result()
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 20

    def test_threads_that_read_at_once(self) -> None:
        for _ in range(50):
            response = structure(self.DOCUMENT)
            start = Barrier(4)

            def read(_: int, response: Response = response, start: Barrier = start) -> tuple[object, ...]:
                start.wait()
                return response.output, response.tools, response.status

            with ThreadPoolExecutor(4) as pool:
                found = list(pool.map(read, range(4)))
            assert all(one[0] is found[0][0] and one[2] == "completed" for one in found)
            assert len(response.problems) == 4
