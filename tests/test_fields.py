"""Fields: the values that they accept, the moment when they are made, and hostile documents."""

import copy
import inspect
import os
import pickle
import pydoc
import subprocess
import sys
import tracemalloc
import typing
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier, Event
from types import FrameType
from typing import Any, ClassVar

import attrs
import orjson
import pytest
from documents import DOCUMENT
from hypothesis import given
from hypothesis import strategies as st

from openai_cancel import models
from openai_cancel.converter import make_converter, response_hook
from openai_cancel.models import (
    ComparisonFilter,
    CompoundFilter,
    FunctionCall,
    InputMessage,
    InputTransformation,
    ItemReference,
    Message,
    OutputText,
    Problem,
    Reasoning,
    ReasoningConfig,
    Refusal,
    Response,
    SummaryText,
    Unknown,
    URLCitation,
)
from openai_cancel.models.response import record_call
from openai_cancel.models.shared import Model

structure = response_hook()


class TestValues:
    def test_every_known_object_has_its_class(self) -> None:
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

    def test_null_and_absent_read_as_none_and_to_dict_tells_them_apart(self) -> None:
        response = structure({"id": "x", "error": None})
        assert (response.error, response.usage) == (None, None)
        assert response.to_dict() == {"id": "x", "error": None}

    def test_empty_lists_and_objects_are_not_none(self) -> None:
        response = structure({"id": "x", "tools": [], "metadata": {}, "prompt": {"variables": {}}, "reasoning": {}})
        assert (response.tools, response.metadata, response.prompt.variables) == ([], {}, {})
        assert response.reasoning == ReasoningConfig()

    def test_an_object_without_a_type_gets_its_class_from_its_keys(self) -> None:
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

    def test_models_match_patterns(self) -> None:
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
            ("max_tool_calls", 5.5, "integer"),
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
    def test_a_value_of_another_type_is_not_coerced_and_is_a_problem(
        self, field: str, value: object, expected: str
    ) -> None:
        document = {"status": "queued", field: value}
        response = structure(document)
        assert getattr(response, field) is None
        assert response.problems == (Problem(f"$.{field}", expected),)
        assert response.to_dict() == document

    def test_an_integer_in_a_number_field_stays_an_integer(self) -> None:
        assert repr(structure({"id": "x", "temperature": 1}).temperature) == "1"

    def test_damage_deep_inside_a_document_leaves_the_rest_typed(self) -> None:
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

    def test_a_map_or_a_list_loses_only_its_wrong_values(self) -> None:
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

    def test_filters_nested_deeper_than_32_levels_become_unknown(self) -> None:
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

    def test_a_long_key_is_cut_in_the_paths_of_problems(self) -> None:
        applied = {"k" * 5000: [5] * 1000}
        result = {"type": "moderation_result", "category_applied_input_types": applied}
        problems = structure({"id": "x", "moderation": {"input": result}}).problems
        assert len(problems) == 1000
        assert all(len(problem.path) < 200 for problem in problems)

    def test_json_without_a_class_is_not_searched_for_problems(self) -> None:
        parameters = {"k" * 10_000: [[0]] * 10_000}
        response = structure({"id": "x", "tools": [{"type": "function", "parameters": parameters, "strict": "y"}]})
        tracemalloc.start()
        assert response.problems == (Problem("$.tools[0].strict", "boolean"),)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert peak < 10_000_000  # with the path of each it would be 100 MB

    def test_the_path_of_a_problem_in_a_map_ends_with_the_key(self) -> None:
        assert structure({"id": "x", "metadata": {"a": 1}}).problems == (Problem("$.metadata.a", "string"),)

    def test_keys_that_are_names_of_attributes_do_not_replace_them(self) -> None:
        document = {"id": "x", "__class__": "y", "__document__": 1, "__problems__": 2, "request_id": "z", "to_dict": 3}
        response = structure(document)
        assert response.to_dict() == document
        assert (response.request_id, response.extra) == (None, {k: v for k, v in document.items() if k != "id"})

    def test_a_deep_document_survives_to_dict_repr_copy_and_pickle(self) -> None:
        document = orjson.loads(b'{"id": "x", "deep": ' + b"[" * 1000 + b"]" * 1000 + b"}")
        assert orjson.dumps(structure(document).to_dict()["id"]) == b'"x"'
        assert "deep" in structure(document).extra
        deep = orjson.loads(b"[" * 900 + b"]" * 900)
        tool = structure({"id": "x", "tools": [{"type": "function", "parameters": deep, "name": 5}]})
        assert tool.problems == (Problem("$.tools[0].name", "string"),)
        assert repr(Unknown(raw=document))
        for again in (copy.deepcopy(structure(document)), pickle.loads(pickle.dumps(structure(document)))):
            assert again.to_dict().keys() == {"id", "deep"}

    def test_a_field_of_a_type_that_json_does_not_have_raises_a_type_error(self) -> None:
        class Wrong(Model):
            names: set[str] | None = None

        wrong = make_converter().structure({"names": ["a"]}, Wrong)
        with pytest.raises(TypeError, match=r"no rule for a field of type set\[str\]"):
            _ = wrong.names


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
def test_damage_anywhere_in_a_document_never_raises_and_loses_nothing(data: st.DataObject, junk: Any) -> None:
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


def makes_fields(frame: FrameType) -> bool:
    return frame.f_globals.get("__name__") == "openai_cancel.models.fields"


class TestLaziness:
    """Only the time that something takes shows that it is made late."""

    DOCUMENT: ClassVar[dict[str, Any]] = {
        "id": "resp_1",
        "status": "completed",
        "temperature": "warm",
        "usage": {"total_tokens": 7},
        "tools": ["hammer", 5],
        "error": [],
        "output": [{"type": "message", "content": [{"type": "output_text", "text": "hi"}]}] * 20,
    }

    def test_reading_a_field_makes_only_that_field(self) -> None:
        response = structure(self.DOCUMENT)
        assert response.__values__ == {}
        assert response.status == "completed"
        assert response.__values__ == {"status": "completed"}
        message = response.output[0]
        assert message.__values__ == {}
        assert message.content[0].text == "hi"
        assert message.__values__.keys() == {"content"}

    def test_a_field_is_made_once(self) -> None:
        response = structure(self.DOCUMENT)
        assert response.output is response.output
        assert response.output[0].content is response.output[0].content
        assert response.usage is response.usage

    def test_every_list_of_a_response_keeps_its_wrong_items_as_unknown(self) -> None:
        lists = [
            field.name
            for field in attrs.fields(attrs.resolve_types(Response))
            for member in (field.type, *typing.get_args(field.type))
            if typing.get_origin(member) is list
        ]
        assert len(lists) == 4
        response = structure({"id": "x"} | {name: [5] for name in lists})
        assert [getattr(response, name) for name in lists] == [[Unknown(raw=5)]] * 4

    def test_problems_are_complete_and_the_same_whatever_was_read_before(self) -> None:
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
    def test_a_copy_has_the_same_fields_whatever_was_read_before(self, duplicate, read: tuple[str, ...]) -> None:
        response = structure(self.DOCUMENT)
        for name in read:
            getattr(response, name)
        again = duplicate(response)
        for field in attrs.fields(Response):
            assert getattr(again, field.name) == getattr(response, field.name)
        assert (again.output[0].content[0].text, again.usage.total_tokens) == ("hi", 7)

    @pytest.mark.parametrize("duplicate", [lambda whole: pickle.loads(pickle.dumps(whole)), copy.copy, copy.deepcopy])
    def test_a_copy_of_a_response_made_by_hand_equals_the_original(self, duplicate) -> None:
        again = duplicate(Response(id="x", output=[Message(id="msg_1")]))
        assert again == Response(id="x", output=[Message(id="msg_1")])
        assert again.output[0].id == "msg_1"

    def test_a_pickle_keeps_the_fields_that_describe_the_call(self) -> None:
        response = structure(self.DOCUMENT)
        record_call(response, request_id="req_1", attempts=2)
        again = pickle.loads(pickle.dumps(response))
        assert (again.request_id, again.attempts, again.retry_after) == ("req_1", 2, None)

    @pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
    def test_every_protocol_of_pickle_takes_objects_of_both_kinds(self, protocol) -> None:
        response = structure(self.DOCUMENT)
        for whole in (
            response,
            response.usage,
            response.output[0],
            Message(id="msg_1"),
            Response(tools=response.tools),
        ):
            again = pickle.loads(pickle.dumps(whole, protocol))
            assert (again, again.problems) == (whole, whole.problems)

    @pytest.mark.parametrize("duplicate", [lambda whole: pickle.loads(pickle.dumps(whole)), copy.copy, copy.deepcopy])
    def test_a_copy_of_a_value_that_is_not_an_object_keeps_its_problem(self, duplicate) -> None:
        stray = structure(self.DOCUMENT).tools[1]
        again = duplicate(stray)
        assert (again.raw, again.type, again.problems) == (5, None, (Problem("$", "object"),))

    def test_problems_of_a_part_have_paths_from_that_part(self) -> None:
        [tool] = structure({"id": "x", "tools": [{"type": "function", "name": 5}]}).tools
        assert tool.problems == (Problem("$.name", "string"),)

    def test_a_missing_attribute_raises_an_attribute_error(self) -> None:
        response = structure(self.DOCUMENT)
        assert not hasattr(response, "nothing")
        assert not hasattr(response.usage, "nothing")
        with pytest.raises(AttributeError, match="'Response' object has no attribute 'nothing'"):
            _ = response.nothing
        assert not hasattr(Response.__new__(Response), "status")

    def test_dir_lists_the_fields_before_they_are_read(self) -> None:
        response = structure(self.DOCUMENT)
        assert {field.name for field in attrs.fields(Response)} <= set(dir(response))
        assert response.__values__ == {}

    def test_inspect_and_pydoc_can_read_the_class(self) -> None:
        structure(self.DOCUMENT)
        assert {field.name for field in attrs.fields(Response)} <= dict(inspect.getmembers(Response)).keys()
        assert "completed_at" in pydoc.render_doc(Response)

    @pytest.mark.parametrize("read_before", [False, True])
    def test_a_signal_handler_can_read_a_field_that_is_being_made(self, read_before) -> None:
        response = structure(self.DOCUMENT)
        if read_before:
            assert response.status == "completed"
        seen: list[Any] = []

        def handle(frame: FrameType, event: str, _: object) -> None:  # as Python runs one: between two steps
            if not seen and event == "return" and makes_fields(frame):
                seen.append(None)
                seen[:] = response.output, response.usage

        sys.setprofile(handle)
        try:
            output, usage = response.output, response.usage
        finally:
            sys.setprofile(None)
        assert output is seen[0]
        assert usage is seen[1]
        assert len(response.problems) == 4

    @pytest.mark.skipif(not hasattr(os, "fork"), reason="needs a fork")
    @pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")  # it has threads: this is the case to test
    def test_a_process_forked_while_a_thread_makes_a_field_can_read_it(self) -> None:
        response = structure(self.DOCUMENT)
        making, forked = Event(), Event()

        def read() -> None:
            def pause(frame: FrameType, event: str, _: object) -> None:
                if event == "return" and makes_fields(frame):
                    sys.setprofile(None)
                    making.set()
                    forked.wait()

            sys.setprofile(pause)
            _ = response.output

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

    def test_threads_that_read_a_field_at_once_get_the_same_object(self) -> None:
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


def test_attrs_makes_no_class_before_a_document_needs_it(python: str) -> None:
    script = """
from openai_cancel import models
from openai_cancel.converter import response_hook
classes = {name: getattr(models, name) for name in models.__all__ if isinstance(getattr(models, name), type)}
def made(): return {name for name, cls in classes.items() if "__attributes__" in vars(cls)}
assert made() == set(), made()
response_hook()({"id": "x", "output": [], "tools": []})
assert made() == {"Response"}, made()
response = response_hook()({"id": "x", "usage": {"total_tokens": 1}})
assert made() == {"Response"}, made()
response.usage
assert made() == {"Response", "Usage"}, made()
[message] = response_hook()({"id": "x", "output": [{"type": "message", "content": [{"type": "refusal"}]}]}).output
assert made() == {"Response", "Usage", "Message"}, made()
message.content
assert made() == {"Response", "Usage", "Message", "Refusal"}, made()
models.Point(x=1)
assert made() == {"Response", "Usage", "Message", "Refusal", "Point"}, made()
"""
    subprocess.run([python, "-c", script], timeout=50, check=True)


def test_many_threads_can_use_a_class_for_the_first_time_at_once(python: str) -> None:
    script = """
import sys, threading
from concurrent.futures import ThreadPoolExecutor
from openai_cancel import models
from openai_cancel.models.shared import Model
sys.setswitchinterval(1e-6)
classes = [cls for cls in map(vars(models).get, models.__all__) if isinstance(cls, type) and issubclass(cls, Model)]
start = threading.Barrier(8)
def use():
    start.wait()
    return [repr(cls()) for cls in classes]
with ThreadPoolExecutor(8) as threads:
    outcomes = [future.result() for future in [threads.submit(use) for _ in range(8)]]
assert all(outcome == outcomes[0] for outcome in outcomes)
"""
    subprocess.run([python, "-c", script], timeout=50, check=True)


def test_many_threads_can_structure_the_first_document_at_once(python: str) -> None:
    script = f"""
import sys, threading
from concurrent.futures import ThreadPoolExecutor
from openai_cancel.converter import response_hook
sys.setswitchinterval(1e-6)
start = threading.Barrier(8)
def use():
    start.wait()
    response = response_hook()({DOCUMENT!r})
    return [part.text for part in response.output[1].content if part.type == "output_text"], response.problems
with ThreadPoolExecutor(8) as threads:
    outcomes = [future.result() for future in [threads.submit(use) for _ in range(8)]]
assert outcomes == [(["Forty", "-two"], ())] * 8, outcomes
"""
    subprocess.run([python, "-c", script], timeout=50, check=True)


def test_a_class_that_another_thread_has_just_made_is_not_made_again() -> None:
    made = attrs.fields(Response)
    vars(Model)["__attrs_attrs__"].make(Response)
    assert attrs.fields(Response) is made


def test_a_pickle_can_be_read_in_a_process_that_has_made_no_class(python: str) -> None:
    response = structure(DOCUMENT)
    by_hand = Message(id="msg_1")
    script = f"""
import pickle, attrs
message = pickle.loads({pickle.dumps(by_hand)!r})
for change in (lambda: setattr(message, "id", "msg_2"), lambda: delattr(message, "id")):
    try:
        change()
    except attrs.exceptions.FrozenInstanceError:
        continue
    raise AssertionError
print(message, pickle.loads({pickle.dumps(response.usage)!r}).total_tokens)
print(pickle.loads({pickle.dumps(response)!r}).output_text)
"""
    done = subprocess.run([python, "-c", script], timeout=50, check=True, capture_output=True, text=True)
    assert done.stdout == "Message(type='message', id='msg_1') 380\nForty-two\n"
