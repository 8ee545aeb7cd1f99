"""cattrs converters for the models."""

import attrs
import cattrs
import orjson
import pytest
from documents import DOCUMENT

from openai_cancel import models
from openai_cancel.converter import configure_converter, make_converter, response_hook
from openai_cancel.models import FunctionCall, Message, Reasoning, Response, Unknown

structure = response_hook()


def test_configure_converter_teaches_a_users_converter_the_models() -> None:
    @attrs.define
    class Stored:
        key: str
        response: Response

    converter = cattrs.Converter()
    configure_converter(converter)
    stored = converter.structure({"key": "k", "response": DOCUMENT}, Stored)
    assert stored.response == structure(DOCUMENT)
    assert converter.unstructure(stored) == {"key": "k", "response": DOCUMENT}


def test_a_converter_structures_unions_and_unknown_objects() -> None:
    converter = make_converter()
    message = DOCUMENT["output"][1]
    assert isinstance(converter.structure(message, models.OutputItem), Message)
    assert converter.structure([message, {"type": "q"}], list[models.OutputItem])[1] == Unknown(
        type="q", raw={"type": "q"}
    )
    assert converter.structure({"type": "q"}, Unknown).raw == {"type": "q"}


def test_a_converter_reads_and_writes_json() -> None:
    converter = make_converter()
    assert orjson.loads(converter.dumps(structure(DOCUMENT))) == DOCUMENT
    assert converter.loads(orjson.dumps(DOCUMENT), Response) == structure(DOCUMENT)


def test_a_union_that_users_write_needs_no_unknown() -> None:
    converter = make_converter()
    union = Message | Reasoning
    assert isinstance(converter.structure({"type": "reasoning"}, union), Reasoning)
    assert isinstance(converter.structure({"type": "function_call"}, union), Unknown)


def test_a_document_that_is_not_an_object_raises_a_type_error() -> None:
    with pytest.raises(TypeError, match="a Response is made of a dict, not of list"):
        structure([])
    with pytest.raises(TypeError, match="made of a dict, not of str"):
        make_converter().structure("x", FunctionCall | Message)
