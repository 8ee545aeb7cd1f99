"""The models compared with the official package, the schema of the API, and recorded bodies."""

import collections
import copy
import re
import types
import typing
from collections.abc import Collection, Iterator
from functools import cache
from typing import Any, TypeAlias, get_args, get_origin

import attrs
import openai.types.beta
import openai.types.responses
import orjson
import pydantic
import pytest
from conftest import SHARED, needs_shared
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from openai_cancel import models
from openai_cancel.converter import make_converter, response_hook
from openai_cancel.models import Response, Unknown
from openai_cancel.models.fields import json_name
from openai_cancel.models.problems import member_path
from openai_cancel.models.shared import Model

structure = response_hook()

CLASSES = {
    name: value
    for name, value in vars(models).items()
    if isinstance(value, type) and issubclass(value, Model) and value is not Unknown
}

FREE_FORM = "JSON that the user or a tool wrote, without a class"

DIFFERENT: dict[str, str] = {
    "FunctionTool.parameters: of a type": FREE_FORM,
    "McpListedTool.annotations: of a type": FREE_FORM,
    "McpListedTool.input_schema: of a type": FREE_FORM,
    "ToolSearchCall.arguments: of a type": FREE_FORM,
    "ToolSearchTool.parameters: of a type": FREE_FORM,
    "InputMessage.content: not str": "a request may have a string there, and servers return it",
    "Response.object: 'response'": "it has only this value, and no class depends on it",
    "CompoundFilter.filters[]: anything": "a filter of filters is typed; what is neither becomes Unknown",
    "Response.output_text": "a property, as in the official package; a value that a server sends is in `extra`",
}
"""Where the models differ from the official package or the schema on purpose, with the reason."""

SPEC = orjson.loads((SHARED / "spec" / "response.openapi.json").read_bytes()) if SHARED.is_dir() else {}
NAMED = orjson.dumps(SPEC)


@cache
def hints(cls: type[Model]) -> dict[str, Any]:
    """Return the annotations of the fields of a class by their names in JSON."""
    resolved = typing.get_type_hints(cls)
    return {json_name(field): resolved[field.name] for field in attrs.fields(cls) if field.init}


def tags_of(cls: type[Model]) -> tuple[str, ...]:
    """Return the values of `type` that select a class."""
    annotation = hints(cls).get("type")
    return get_args(annotation) if get_origin(annotation) is typing.Literal else ()


def flat(annotation: Any) -> list[Any]:
    """Return the members of a union without None."""
    origin = get_origin(annotation)
    if origin is typing.Annotated:
        return flat(get_args(annotation)[0])
    if origin in {typing.Union, types.UnionType}:
        return [member for argument in get_args(annotation) for member in flat(argument)]
    return [] if annotation is type(None) else [annotation]


def scalars(members: list[Any]) -> set[type]:
    """Return the JSON scalars in a union. A place for a number may hold an integer, too."""
    found = {member for member in members if member in {str, int, float, bool}}
    found |= {type(value) for member in members if get_origin(member) is typing.Literal for value in get_args(member)}
    return found | ({int} if float in found else set())


def literals(members: list[Any]) -> set[str]:
    """Return the literal strings in a union."""
    return {value for member in members if get_origin(member) is typing.Literal for value in get_args(member)}


def part(members: list[Any], kind: type) -> Any:
    """Return the type of the items of the list or dict in a union, or None if there is none."""
    return next((get_args(member)[-1] for member in members if get_origin(member) is kind), None)


def class_for(members: list[Any], tag: str | None) -> type[Model] | None:
    """Return our class for an object with this `type`."""
    classes = [member for member in members if isinstance(member, type) and issubclass(member, Model)]
    known = [cls for cls in classes if cls is not Unknown]
    if tag in (None, *([] if len(known) > 1 else [tag])) and len(known) == 1 and tag not in tags_of(known[0]):
        return known[0]
    return next((cls for cls in known if tag in tags_of(cls) or (not tag and cls.implied_by)), None)


class Theirs:
    """The annotations of the official package."""

    @staticmethod
    def scalars(annotation: Any) -> set[type]:
        return scalars(flat(annotation))

    @staticmethod
    def literals(annotation: Any) -> set[str]:
        return literals(flat(annotation))

    @staticmethod
    def part(annotation: Any, kind: type) -> Any:
        return part(flat(annotation), kind)

    @staticmethod
    def anything(annotation: Any) -> bool:
        return any(member in {object, Any} for member in flat(annotation))

    @staticmethod
    def objects(annotation: Any) -> Iterator[tuple[str, list[str | None], dict[str, Any]]]:
        for member in flat(annotation):
            if isinstance(member, type) and issubclass(member, pydantic.BaseModel):
                fields = {field.alias or name: field.annotation for name, field in member.model_fields.items()}
                tags = [
                    value
                    for one in flat(fields.get("type"))
                    if get_origin(one) is typing.Literal
                    for value in get_args(one)
                ]
                yield f"{member.__module__}.{member.__name__}", tags or [None], fields


class Schema:
    """The nodes of the schema."""

    @classmethod
    def flat(cls, node: dict[str, Any]) -> list[dict[str, Any]]:
        if "$ref" in node:
            name = node["$ref"].rpartition("/")[2]
            return [{"title": name, **one} for one in cls.flat(SPEC["components"]["schemas"][name])]
        if "allOf" in node:
            merged: dict[str, Any] = {"type": "object", "properties": {}}
            for inner in node["allOf"]:
                for one in cls.flat(inner):
                    merged["properties"] |= one.get("properties", {})
            return [merged] if merged["properties"] else [one for inner in node["allOf"] for one in cls.flat(inner)]
        for choice in ("anyOf", "oneOf"):
            if choice in node:
                return [one for inner in node[choice] for one in cls.flat(inner)]
        return [] if node.get("type") == "null" else [node]

    @classmethod
    def scalars(cls, node: dict[str, Any]) -> set[type]:
        kinds = {"string": str, "integer": int, "number": float, "boolean": bool}
        found = {kinds[one["type"]] for one in cls.flat(node) if one.get("type") in kinds}
        return found | ({int} if float in found else set())

    @classmethod
    def literals(cls, node: dict[str, Any]) -> set[str]:
        return {value for one in cls.flat(node) for value in one.get("enum", []) if value is not None}

    @classmethod
    def part(cls, node: dict[str, Any], kind: type) -> Any:
        for one in cls.flat(node):
            if kind is list and one.get("type") == "array":
                return one["items"]
            if kind is dict and isinstance(one.get("additionalProperties"), dict) and not one.get("properties"):
                return one["additionalProperties"]
        return None

    @classmethod
    def anything(cls, node: dict[str, Any]) -> bool:
        return any(not one.get("type") and "properties" not in one for one in cls.flat(node))

    @classmethod
    def objects(cls, node: dict[str, Any]) -> Iterator[tuple[str, list[str | None], dict[str, Any]]]:
        for one in cls.flat(node):
            if one.get("properties"):
                tags = [tag for kind in cls.flat(one["properties"].get("type", {})) for tag in kind.get("enum", [])]
                yield one.get("title", "?"), tags or [None], one["properties"]


def gaps(source: Any, theirs: Any, ours: Any, path: str, seen: set[Any]) -> Iterator[str]:
    """Yield the places where `theirs` allows a value that `ours` has no type for."""
    members = flat(ours)
    if Any in members:
        if not source.anything(theirs):
            yield f"{path}: of a type"
        return
    yield from scalar_gaps(source, theirs, members, path)
    for kind in (list, dict):
        if (inner := source.part(theirs, kind)) is not None:
            if (mine := part(members, kind)) is None:
                yield f"{path}: {kind.__name__}"
            else:
                yield from gaps(source, inner, mine, f"{path}[]" if kind is list else f"{path}{{}}", seen)
    for name, tags, fields in source.objects(theirs):
        for tag in tags:
            cls = class_for(members, tag)
            if cls is None:
                yield f"{path}: {name} {tag or ''}".rstrip()
            elif (cls, name) not in seen:
                seen.add((cls, name))
                yield from field_gaps(source, fields, cls, seen)


def scalar_gaps(source: Any, theirs: Any, members: list[Any], path: str) -> Iterator[str]:
    if missing := source.scalars(theirs) - scalars(members):
        yield f"{path}: {', '.join(sorted(kind.__name__ for kind in missing))}"
    if more := scalars(members) - source.scalars(theirs):
        yield f"{path}: not {', '.join(sorted(kind.__name__ for kind in more))}"
    names_a_model = path.endswith(".model")  # new models appear daily
    if not names_a_model and (missing := source.literals(theirs) - literals(members)):
        yield f"{path}: {', '.join(map(repr, sorted(missing)))}"
    if source.anything(theirs):
        yield f"{path}: anything"


def field_gaps(source: Any, fields: dict[str, Any], cls: type[Model], seen: set[Any]) -> Iterator[str]:
    for field, annotation in fields.items():
        if field in hints(cls):
            yield from gaps(source, annotation, hints(cls)[field], f"{cls.__name__}.{field}", seen)
        else:
            yield f"{cls.__name__}.{field}"


OFFICIAL = [openai.types.responses.Response, openai.types.beta.BetaResponse]
"""A response in the official package, without and with the multi-agent beta."""


@pytest.mark.parametrize("official", OFFICIAL)
def test_the_models_cover_the_official_package(official: type[pydantic.BaseModel]) -> None:
    found = set(gaps(Theirs, official, Response, "Response", set()))
    assert found - DIFFERENT.keys() == set()


@needs_shared
def test_the_models_cover_the_schema() -> None:
    seen: set[Any] = set()
    found = set(gaps(Schema, {"$ref": "#/components/schemas/Response"}, Response, "Response", seen))
    assert found - DIFFERENT.keys() == set()
    found |= set(gaps(Theirs, openai.types.responses.Response, Response, "Response", set()))
    assert found == DIFFERENT.keys(), "there is something in the table that is no different any more"
    assert len({cls for cls, _ in seen}) > 100  # it did walk


def test_a_field_a_type_or_a_literal_that_we_lack_is_found() -> None:
    class Newer(openai.types.responses.Response):
        brand_new: str
        usage: str
        top_logprobs: bool
        service_tier: typing.Literal["auto", "brand new"]

    class Wider(Model):
        status: Any = None
        max_tool_calls: int | str | None = None

    found = set(gaps(Theirs, Newer, Response, "Response", set()))
    assert found - DIFFERENT.keys() == {
        "Response.brand_new",
        "Response.usage: str",
        "Response.top_logprobs: bool",
        "Response.top_logprobs: not int",
        "Response.service_tier: 'brand new'",
    }
    found = set(gaps(Theirs, openai.types.responses.Response, Wider, "Response", set()))
    assert {"Wider.status: of a type", "Wider.max_tool_calls: not str"} <= found


def annotations_of(annotation: Any) -> Iterator[Any]:
    yield annotation
    for member in flat(annotation):
        if get_origin(member) in {list, dict}:
            yield from annotations_of(get_args(member)[-1])


@pytest.mark.parametrize("cls", CLASSES.values(), ids=CLASSES)
def test_unions_are_open_and_their_members_have_different_types(cls: type[Model]) -> None:
    for field, annotation in hints(cls).items():
        for place in annotations_of(annotation):
            members = [one for one in flat(place) if isinstance(one, type) and issubclass(one, Model)]
            known = [one for one in members if one is not Unknown]
            tags = [tag for one in known for tag in tags_of(one)]
            assert len(tags) == len(set(tags)), field
            assert len([one for one in known if not tags_of(one)]) <= 1, field
            if tags:
                assert Unknown in members, f"{cls.__name__}.{field} should be open: | Unknown"
            if field != "type" and literals(flat(place)):
                assert str in flat(place), f"{cls.__name__}.{field} should be open: | str"


@pytest.mark.parametrize("cls", CLASSES.values(), ids=CLASSES)
def test_every_class_has_a_docstring_and_a_default_for_each_field(cls: type[Model]) -> None:
    assert cls.__doc__.rstrip().endswith(".")
    assert cls() == cls()
    for field in attrs.fields(cls):
        assert field.default is None or field.default in tags_of(cls) or not field.init


def test_every_class_is_listed_once_and_nothing_else_leaks() -> None:
    assert len(models.__all__) == len(set(models.__all__))
    assert {*CLASSES, "Unknown", "Problem"} <= set(models.__all__)
    aliases = [getattr(models, name) for name in models.__all__ if not isinstance(getattr(models, name), type)]
    assert all(get_origin(alias) in {types.UnionType, typing.Union} for alias in aliases)
    public = {name for name, value in vars(models).items() if not isinstance(value, types.ModuleType)}
    assert {name for name in public if not name.startswith("_")} == set(models.__all__)


@pytest.mark.parametrize("cls", CLASSES.values(), ids=CLASSES)
def test_only_a_compound_filter_can_contain_itself(cls: type[Model]) -> None:
    inside: set[type[Model]] = set()
    pending = [cls]
    while pending:
        found = {
            member
            for annotation in hints(pending.pop()).values()
            for place in annotations_of(annotation)
            for member in flat(place)
            if isinstance(member, type) and issubclass(member, Model)
        }
        pending += found - inside
        inside |= found
    assert (cls in inside) is (cls is models.CompoundFilter)


def values(annotation: Any, depth: int) -> st.SearchStrategy[Any]:
    """Generate the JSON values for a place with this annotation."""
    choices: list[st.SearchStrategy[Any]] = []
    members = flat(annotation)
    for member in members if len(members) == 1 else [one for one in members if one is not object]:
        if member in {Any, object}:
            choices.append(
                st.none() | st.integers(0, 9) | st.dictionaries(st.text(max_size=3), st.booleans(), max_size=2)
            )
        elif get_origin(member) is typing.Literal:
            choices.append(st.sampled_from(get_args(member)))
        elif get_origin(member) in {list, dict}:
            kind = get_origin(member)
            inner = values(get_args(member)[-1], depth - 1) if depth else st.nothing()
            many = (
                st.lists(inner, max_size=2) if kind is list else st.dictionaries(st.text(max_size=3), inner, max_size=2)
            )
            choices.append(st.builds(kind) if inner.is_empty else many)
        elif member is Unknown:
            choices.append(st.just({"type": "of_the_future", "more": [1, None]}))
        elif issubclass(member, Model):
            if depth:
                choices.append(objects(member, depth - 1))
        elif issubclass(member, pydantic.BaseModel):
            if depth:
                choices.append(their_objects(member, depth - 1))
        else:
            plain = {
                str: st.text(max_size=5),
                int: st.integers(-9, 2**60),
                float: st.floats(-9, 9),
                bool: st.booleans(),
            }
            choices.append(plain[member])
    return st.one_of(choices) if choices else st.nothing()


def objects(cls: type[Model], depth: int) -> st.SearchStrategy[dict[str, Any]]:
    """Generate documents of a class. Members may be null, absent or unknown."""
    fields = {
        name: values(annotation, depth) | st.none()
        for name, annotation in hints(cls).items()
        if name != "type" or not tags_of(cls)
    }
    tag = {"type": st.sampled_from(tags_of(cls))} if tags_of(cls) else {}
    extra = st.dictionaries(st.sampled_from(["new_field", "__document__", "__class__"]), st.integers(), max_size=1)
    document = st.fixed_dictionaries(tag, optional=fields)
    return st.builds(lambda known, more: known | {k: v for k, v in more.items() if k not in known}, document, extra)


def their_objects(cls: type[pydantic.BaseModel], depth: int) -> st.SearchStrategy[dict[str, Any]]:
    """Generate documents of a class of the official package."""
    fields = {field.alias or name: values(field.annotation, depth) for name, field in cls.model_fields.items()}
    tag = {"type": fields.pop("type")} if "type" in fields else {}
    return st.fixed_dictionaries(tag, optional={name: value for name, value in fields.items() if not value.is_empty})


Place: TypeAlias = tuple[Any, Any, str, set[type]]
"""An object or array of a document, a key in it, the path to its value, and the JSON types that are allowed there."""


def places(document: Any, annotation: Any, path: str) -> Iterator[Place]:
    """Yield every place inside a document whose type is declared."""
    members = flat(annotation)
    if Any in members:
        return
    inner: list[tuple[Any, Any, str]] = []
    if type(document) is list and (item := part(members, list)):
        inner = [(index, item, f"[{index}]") for index in range(len(document))]
    elif type(document) is dict and (item := part(members, dict)):
        inner = [(key, item, f".{key}" if key.isidentifier() else f"[{key!r}]") for key in document]
    elif type(document) is dict:
        cls = class_for(members, document.get("type"))
        fields = hints(cls) if cls else {}
        inner = [(key, fields[key], f".{key}") for key in document if key in fields and key != "type"]
    for key, rule, step in inner:
        rules = flat(rule)
        if Any not in rules:
            allowed = scalars(rules) | {list for one in rules if get_origin(one) is list}
            if any(get_origin(one) is dict or (isinstance(one, type) and issubclass(one, Model)) for one in rules):
                allowed.add(dict)
            yield document, key, f"{path}{step}", allowed
            yield from places(document[key], rule, f"{path}{step}")


def reflects(value: Any, document: Any, annotation: Any, damaged: Collection[str] = (), path: str = "$") -> bool:
    """Return whether a value has the content of its document in the declared types, except for damaged places."""
    members = flat(annotation)
    if isinstance(value, Unknown):
        return Unknown in members and value.raw == document
    if Any in members or path not in damaged:
        return contains(value, document, members, damaged, path)
    return value is None or path.endswith(".type")  # which is then the default of the class


def contains(value: Any, document: Any, members: list[Any], damaged: Collection[str], path: str) -> bool:
    inner = part(members, type(value))
    if Any in members:
        return bool(value == document)
    if isinstance(value, Model):
        return type(value) in members and all(
            reflects(getattr(value, field.name), document[name], hints(type(value))[name], damaged, f"{path}.{name}")
            for field in attrs.fields(type(value))
            if field.init and document.get(name := json_name(field)) is not None
        )
    if isinstance(value, list) and inner:
        places = [(f"{path}[{index}]", item) for index, item in enumerate(document)]
        places = [one for one in places if one[0] not in damaged or Unknown in flat(inner)]
        return len(value) == len(places) and all(
            reflects(mine, theirs, inner, damaged, place) for mine, (place, theirs) in zip(value, places, strict=True)
        )
    if isinstance(value, dict) and inner:
        sound = [key for key in document if path + member_path(key) not in damaged]
        return list(value) == sound and all(
            reflects(value[key], document[key], inner, damaged, path + member_path(key)) for key in sound
        )
    return type(value) is type(document) and type(value) in scalars(members) and bool(value == document)


@settings(max_examples=60, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large], deadline=None)
@given(objects(Response, 4))
def test_to_dict_returns_documents_of_our_classes_exactly(document: dict[str, Any]) -> None:
    response = structure(document)
    assert response.to_dict() == document
    assert response.problems == ()
    assert reflects(response, document, Response)


@settings(max_examples=60, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large], deadline=None)
@given(st.one_of(their_objects(official, 4) for official in OFFICIAL))
def test_to_dict_returns_documents_of_the_official_package_exactly(document: dict[str, Any]) -> None:
    response = structure(document)
    assert response.to_dict() == document
    assert response.problems == ()
    assert list(unknowns(response)) == []
    assert reflects(response, document, Response)


@settings(max_examples=100, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large], deadline=None)
@given(document=objects(Response, 4), data=st.data())
def test_problems_list_exactly_the_damaged_places(document: dict[str, Any], data: st.DataObject) -> None:
    document = {**copy.deepcopy(document), "status": "completed"}
    damaged: set[str] = set()
    for _ in range(data.draw(st.integers(1, 3))):
        sound = [one for one in places(document, Response, "$") if one[2] not in damaged]
        if not sound:
            break
        parent, key, path, allowed = data.draw(st.sampled_from(sound))
        junk = [one for one in (5, 5.5, True, "junk", [], {}) if type(one) not in allowed]
        parent[key] = data.draw(st.sampled_from(junk))
        damaged = {other for other in damaged if not other.startswith((f"{path}.", f"{path}["))} | {path}
    response = structure(document)
    assert response.to_dict() == document
    assert {problem.path for problem in response.problems} == damaged
    assert reflects(response, document, Response, damaged)


@pytest.mark.parametrize("name", CLASSES)
@settings(max_examples=3, suppress_health_check=list(HealthCheck), deadline=None)
@given(data=st.data())
def test_every_class_structures_its_documents_and_survives_damage(name: str, data: st.DataObject) -> None:
    cls = CLASSES[name]
    document = data.draw(objects(cls, 2))
    thing = make_converter().structure(document, cls)
    assert thing.to_dict() == document
    assert reflects(thing, document, cls)
    field = data.draw(st.sampled_from(sorted(hints(cls))))
    junk = data.draw(st.sampled_from([5, 5.5, True, "junk", [], {}, ["junk"], [[]], {"type": 5}, [None]]))
    damaged = make_converter().structure({**document, field: junk}, cls)
    assert damaged.to_dict() == {**document, field: junk}
    if field != "type":
        assert reflects(damaged, damaged.to_dict(), cls, {problem.path for problem in damaged.problems})


@needs_shared
@pytest.mark.parametrize("eighth", range(8))
def test_to_dict_returns_recorded_bodies_exactly(eighth: int) -> None:
    paths = sorted(SHARED.glob("corpus/*.json"))[eighth::8]
    assert paths
    for path in paths:
        document = orjson.loads(path.read_bytes())
        response = structure(document)
        assert response.to_dict() == document, path.stem
        damaged = {problem.path for problem in response.problems}
        assert damaged <= {"$.output[0].content"}, path.stem
        assert reflects(response, document, Response, damaged), path.stem
        for unknown in unknowns(response):
            assert f'"enum":["{unknown.type}"]'.encode() not in NAMED, f"{path.stem}: {unknown.type} has no class"


@needs_shared
def test_recorded_bodies_have_problems_in_one_place_only() -> None:
    found = collections.Counter(
        (re.sub(r"\d+", "", problem.path), problem.expected)
        for path in SHARED.glob("corpus/*.json")
        for problem in structure(orjson.loads(path.read_bytes())).problems
    )
    assert found.keys() == {("$.output[].content", "array")}, found


def unknowns(value: Any) -> Iterator[Unknown]:
    if isinstance(value, Unknown):
        yield value
    elif isinstance(value, Model):
        for field in attrs.fields(type(value)):
            yield from unknowns(getattr(value, field.name))
    elif isinstance(value, list | dict):
        for item in value.values() if isinstance(value, dict) else value:
            yield from unknowns(item)


@needs_shared
def test_the_example_of_the_api_reference_is_typed() -> None:
    response = structure(SPEC["components"]["schemas"]["Response"]["example"])
    match response:
        case Response(output=[models.Message(content=[models.OutputText(text=text)])], usage=models.Usage() as usage):
            assert text == response.output_text
            assert (usage.input_tokens, usage.output_tokens, usage.total_tokens) == (328, 52, 380)
        case _:
            pytest.fail("no match")
    assert response.problems == ()
