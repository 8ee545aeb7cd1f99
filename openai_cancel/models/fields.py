"""The fields of the models: each is made when it is first read.

An object keeps the JSON document that it was made from. Each field is a descriptor on the class: the first read takes
the value from the document, checks it against the field's annotation, and stores the result in the object's dictionary,
where Python finds it from then on. The objects inside are made in the same way, so only what is read is made. A value
of another shape reads as None, and `problems` lists its place.
"""

from __future__ import annotations

import ast
import json
from collections.abc import Callable, Sequence
from contextlib import suppress
from threading import RLock
from types import UnionType
from typing import Any, ClassVar, Literal, Self, TypeAlias, Union, get_args, get_origin

import attrs
import orjson

from openai_cancel.models.problems import member_path
from openai_cancel.models.serialization import Serializable

Hook: TypeAlias = Callable[[Any], Any]
"""A function that makes a value from a JSON value of one type, or raises a `ShapeError`."""

Shapes: TypeAlias = dict[type, Hook | None]
"""The JSON types that a place of a document may hold, each with a hook, or None where the value stays as it is."""

MAKING = RLock()
"""Held while attrs makes a class: if two threads made it at once, it would lose its defaults."""

_DIGITS = bytes(0x31 if chr(code).isdigit() else 0x30 for code in range(0x80)).ljust(256, b"0")
_LONG_INTEGER = b"1" * 19  # shorter ones fit into 64 bits

_JSON_NAMES = {str: "string", int: "integer", float: "number", bool: "boolean", list: "array", dict: "object"}


class ShapeError(Exception):
    """A JSON value that its place may not hold.

    Attributes:
        problems: for each wrong value its path from this place and what is expected there, which is empty for the
            place itself.
        rest: the list or the map without its wrong values, or None.
    """

    problems: tuple[tuple[str, str], ...]
    rest: Any

    def __init__(self, *problems: tuple[str, str], rest: Any = None) -> None:
        self.problems, self.rest = problems, rest

    def seen_from(self, step: str, shapes: Shapes) -> tuple[tuple[str, str], ...]:
        """Return the problems with paths that begin one step further out."""
        return tuple((f"{step}{path}", expected or _expected(shapes)) for path, expected in self.problems)


def _integer(number: float) -> int:
    if not number.is_integer():
        raise ShapeError(("", ""))
    return int(number)


_PLAIN: dict[Any, Shapes] = {
    str: {str: None},
    int: {int: None, float: _integer},  # JSON does not tell 12.0 from 12
    float: {float: None, int: None},  # JSON has one kind of number, and PEP 484 accepts an int for a float
    bool: {bool: None},
    type(None): {type(None): None},
    Any: dict.fromkeys([*_JSON_NAMES, type(None)]),
}


class Structured(Serializable):
    """An object that keeps its document and makes its fields from it: the part of `Model` that `Field` needs."""

    __slots__ = ("__dict__", "__document__")  # the document is faster to read than an entry of the dictionary
    __document__: Any

    __values__: dict[str, Any]
    """The object's dictionary, with the values that were made so far. To others, its `__dict__` is the document."""

    implied_by: ClassVar[str | None] = None
    """A key that identifies an object of this class where it has no `type`."""

    takes_anything: ClassVar[bool] = False
    """Whether this class is for the values that no other class of a union describes."""

    @classmethod
    def __structure__(cls, document: Any) -> Self:
        """Return an object of a class that attrs has made. No constructor runs."""
        instance = _new(cls)
        _set_document(instance, document)
        return instance


# Looked up once. A user's assignment to an object goes through `Model.__setattr__`, which refuses it.
_new, _set_document = object.__new__, vars(Structured)["__document__"].__set__

Structured.__values__ = vars(Structured)["__dict__"]


def keep_body(instance: Structured, body: bytes) -> None:
    """Keep the JSON from which orjson has parsed the document of an object, for `document_of`."""
    instance.__values__["__body__"] = body


def parse_exactly(data: bytes) -> Any:
    """Parse JSON with exact integers. Raises orjson's error."""
    document = orjson.loads(data)
    if _has_long_integer(data):
        with suppress(RecursionError):  # orjson follows a document deeper
            document = json.loads(data)
    return document


def _has_long_integer(data: bytes) -> bool:
    """Return whether JSON may have an integer of more than 64 bits, which orjson reads as a float."""
    return _LONG_INTEGER in data.translate(_DIGITS)


def document_of(instance: Structured) -> Any:
    """Return the document of an object, with exact integers.

    orjson reads an integer of more than 64 bits as a float. Such a document is parsed again before it is first used
    as a whole or in parts, and not when it arrives, since most are only asked for their status.
    """
    values = instance.__values__
    body = values.get("__body__")
    if body is not None:
        if _has_long_integer(body):
            with suppress(RecursionError):  # orjson follows a document deeper
                _set_document(instance, json.loads(body))
        values.pop("__body__", None)  # last: another thread may have come here, too
    return instance.__document__


class Field:
    """A field of a class, which makes its value at the first read and stores it in the object's dictionary.

    Python looks there before it asks a descriptor without `__set__`. No lock is needed: if two threads, or a thread and
    a signal handler, make the same value, both get the one that was stored first.
    """

    __slots__ = ("_attribute", "_plain", "_shapes", "default", "key", "name")

    def __init__(self, attribute: attrs.Attribute[Any]) -> None:
        self.name: str = attribute.name
        self.key: str = json_name(attribute)
        self.default: Any = attribute.default
        self._attribute = attribute
        self._shapes: Shapes = {}
        self._plain: type | None = None

    def __get__(self, instance: Structured | None, owner: type | None = None) -> Any:
        """Return the value, or the field itself if it is read from the class."""
        if instance is None:
            return self
        value = instance.__document__.get(self.key)
        if value is None:
            return self.default
        if type(value) is self._plain:
            instance.__values__[self.name] = value
            return value
        return instance.__values__.setdefault(self.name, self._make(instance, value))

    def _make(self, instance: Structured, value: object) -> Any:
        shapes = self._shapes
        if not shapes:
            shapes = self._shapes = shapes_of(self._attribute.type)
            self._plain = next((kind for kind, hook in shapes.items() if hook is None), None)
        hook = shapes.get(type(value), _refuse)
        if hook is not None and "__body__" in instance.__values__:
            value = document_of(instance)[self.key]
            hook = shapes.get(type(value), _refuse)
        try:
            return value if hook is None else hook(value)
        except ShapeError as error:
            # Before the value is stored: a thread that finds the value finds its problems, too.
            problems = instance.__values__.setdefault("__problems__", {})
            problems[self.key] = error.seen_from(f".{self.key}", shapes)
            return self.default if error.rest is None else error.rest


class AttributesOnDemand:
    """The `__attrs_attrs__` of classes that attrs makes when their fields are first asked for.

    attrs takes 0.3 ms for a class, and there are 150.
    """

    def __set_name__(self, owner: type, name: str) -> None:
        self._base = owner
        self._made: set[type] = set()

    def __get__(self, instance: object, cls: type[Any]) -> Any:
        """Return the attributes of a class."""
        if cls is self._base:
            return ()
        if cls not in self._made:
            self.make(cls)
        return cls.__attributes__

    def make(self, cls: type[Any]) -> None:
        """Make a class, unless another thread has done so."""
        with MAKING:
            if cls not in self._made:
                attrs.frozen(cls, slots=False, kw_only=True, repr=False, eq=False)
                for attribute in cls.__attributes__:
                    setattr(cls, attribute.name, Field(attribute))
                self._made.add(cls)


def json_name(attribute: attrs.Attribute[Any]) -> str:
    """Return the name of a field in the document: without the underscore that PEP 8 adds to a keyword (`async_`)."""
    return attribute.name.removesuffix("_")


def maker_of(cls: type[Structured]) -> Hook:
    """Return the function that makes objects of a class from documents, after attrs has made the class."""
    with MAKING:
        attrs.resolve_types(cls)
    return cls.__structure__


def union_maker(classes: Sequence[type[Structured]]) -> Hook:
    """Return the function that makes objects of several classes, one of which takes anything.

    The `type` of an object selects its class. A `type` that no class names selects the class that names none, if there
    is one, or else the class that takes anything. An object without a `type` is of the class whose `implied_by` it has.
    """
    known = [cls for cls in classes if not cls.takes_anything]
    tagged = {tag: cls for cls in known for tag in _tags(cls)}
    [rest, *_] = [cls for cls in (*known, *classes) if cls not in tagged.values()]
    makers: dict[str, Hook] = {}

    def make(document: dict[str, Any]) -> Any:
        try:
            maker = makers[document["type"]]
        except (KeyError, TypeError):  # the first object of its class, or one whose `type` no class names
            maker = choose(document)
        return maker(document)

    def choose(document: dict[str, Any]) -> Hook:
        cls, tag = known[0], document.get("type")
        if isinstance(tag, str):
            cls = tagged.get(tag, rest)
        elif len(known) > 1:
            cls = next((member for member in known if member.implied_by in document), rest)
        maker = maker_of(cls)
        if isinstance(tag, str) and tag in tagged:
            makers[tag] = maker
        return maker

    return make


def shapes_of(annotation: Any) -> Shapes:
    """Return what a place with this annotation may hold. Nothing is coerced: the shapes are those of JSON."""
    shapes: Shapes = {}
    classes = classes_in(annotation)
    for member in _members(annotation):
        origin, arguments = get_origin(member), get_args(member)
        if origin is list:
            shapes[list] = _list_hook(arguments[0])
        elif origin is dict:
            shapes[dict] = dict[str, Any].copy if arguments[1] is Any else _map_hook(arguments[1])
        elif origin is Literal:
            shapes |= {type(value): None for value in arguments}
        elif member in _PLAIN:
            shapes |= _PLAIN[member]
        elif member not in classes:
            raise TypeError(f"no rule for a field of type {member!r}")
    if classes:
        shapes[dict] = union_maker(classes) if len(classes) > 1 else maker_of(classes[0])
    return shapes


def classes_in(annotation: Any) -> list[type[Structured]]:
    """Return the classes of objects among the members of a union."""
    return [member for member in _members(annotation) if isinstance(member, type) and issubclass(member, Structured)]


def _members(annotation: Any) -> tuple[Any, ...]:
    return get_args(annotation) if get_origin(annotation) in {Union, UnionType} else (annotation,)


def _tags(cls: type[Structured]) -> tuple[str, ...]:
    """Return the values of `type` that name a class, from the text of its annotation, `Literal[…]`.

    To evaluate all annotations of all classes of a union takes longer than to structure a document.
    """
    annotation = cls.__annotations__.get("type", "")
    if not annotation.startswith("Literal[") or not annotation.endswith("]"):
        return ()
    tags: tuple[str, ...] = ast.literal_eval(f"({annotation[len('Literal[') : -1]},)")
    return tags


def _refuse(_: Any) -> Any:
    raise ShapeError(("", ""))


def _list_hook(item: Any) -> Hook:
    shapes = shapes_of(item)
    unknown = next((cls for cls in classes_in(item) if cls.takes_anything), None)

    def structure(values: list[object]) -> list[Any]:
        result: list[Any] = []
        wrong: list[tuple[str, str]] = []
        for index, value in enumerate(values):
            hook = shapes.get(type(value), _refuse)
            try:
                result.append(value if hook is None else hook(value))
            except ShapeError as error:
                if unknown is None:
                    wrong += error.seen_from(f"[{index}]", shapes)
                else:
                    stray = maker_of(unknown)(value)
                    stray.__values__["__problems__"] = {"": error.seen_from("", shapes)}
                    result.append(stray)
        if wrong:
            raise ShapeError(*wrong, rest=result)
        return result

    return structure


def _map_hook(item: Any) -> Hook:
    shapes = shapes_of(item)

    def structure(document: dict[str, object]) -> dict[str, Any]:
        result: dict[str, Any] = {}
        wrong: list[tuple[str, str]] = []
        for key, value in document.items():
            hook = shapes.get(type(value), _refuse)
            try:
                result[key] = value if hook is None else hook(value)
            except ShapeError as error:
                wrong += error.seen_from(member_path(key), shapes)
                if error.rest is not None:
                    result[key] = error.rest
        if wrong:
            raise ShapeError(*wrong, rest=result)
        return result

    return structure


def _expected(shapes: Shapes) -> str:
    implied = float if shapes.get(float) is _integer else int if float in shapes else None
    return " or ".join(name for kind, name in _JSON_NAMES.items() if kind in shapes and kind is not implied)
