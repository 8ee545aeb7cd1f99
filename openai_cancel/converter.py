"""From JSON documents to the classes of `models`, by cattrs: strict, open, forgiving and lossless.

Strict: nothing is coerced, as plain cattrs would (None to 'None'). Open: an object of a `type` without a class becomes
`Unknown`. Forgiving: a value of the wrong shape leaves its field None and is noted as a problem. Lossless: each object
keeps its document. Lazy: a `Response` makes its fields when the first of them is read, and a long list in it when that
is read, for many a cancel looks at the status and no further.
"""

import ast
import copyreg
import marshal
import pickle
from collections.abc import Callable, Sequence
from functools import cache, partial
from threading import local
from types import UnionType
from typing import Any, Literal, TypeAlias, Union, get_args, get_origin

import attrs
from cattrs import Converter
from cattrs.preconf.orjson import make_converter as make_orjson_converter

from openai_cancel.models import CompoundFilter, Response, Unknown
from openai_cancel.models.shared import Model, json_name, member_path

_Hook: TypeAlias = Callable[..., Any]
_Kinds: TypeAlias = dict[type, _Hook | None]
"""What a place of a document may hold, by the class that the JSON parser gives it, with its hook; None: as it is."""
_Place: TypeAlias = tuple[str, type | None, _Kinds]
"""The field that a member goes to, the commonest class of a value that stays as it is, and all that it may be."""
_Plans: TypeAlias = dict[type[Model], _Hook]

_NAMES = {str: "string", int: "integer", float: "number", bool: "boolean", list: "array", dict: "object"}
_SCALARS: dict[Any, _Kinds] = {
    str: {str: None},
    int: {int: None},
    float: {float: None, int: None},  # JSON has one kind of number, and PEP 484 lets an int stand for a float
    bool: {bool: None},
    type(None): {type(None): None},
    Any: dict.fromkeys([*_NAMES, type(None)]),
}
# The classes are frozen for their users; this is what makes frozen free.
_new, _set_values = object.__new__, Model.__dict__["__dict__"].__set__

_LONG = 16
"""A list in a `Response` that has more items is made when it is read. To put it off costs as much as a few items.

That cannot fail then, for its items may be `Unknown`.
"""

_DEEPEST = 32
"""How many filters may stand in each other; what is deeper becomes `Unknown`. No other class holds itself."""


class _Later:
    """Makes the fields of a `Response` when the first of them is read.

    It is what the class has by the name of a field; Python asks it if the object has no such value yet. There is no
    lock: should another thread, or a signal's handler, make the same, what is ready first counts.
    """

    def __init__(self, name: str) -> None:
        self._name = name

    def __get__(self, instance: Response | None, owner: type[Response]) -> Any:
        if instance is None:
            return self
        values, name = instance.__dict__, self._name
        if "_make" in values:
            made = values["_make"](values["_document"]).__dict__
            made |= values
            del made["_make"]
            values = values.setdefault("_made", made)
            _set_values(instance, values)
        if name not in values:
            try:
                part = values["_parts"][name]
            except KeyError:  # it is a bare object that nobody has filled
                raise AttributeError(name, name=name, obj=instance) from None
            values.setdefault(name, part())
        return values[name]


class _Mismatch(Exception):  # noqa: N818 - a signal inside this module; it never leaves it
    """A value that is not what its place may hold.

    Its problems say where, from there, and what is expected, which is filled in by whoever knows the place; `rest` is
    what a list or a map is without them.
    """

    def __init__(self, *problems: tuple[str, str], rest: Any = None) -> None:
        self.problems, self.rest = problems, rest

    def at(self, step: str, kinds: _Kinds) -> tuple[tuple[str, str], ...]:
        """The problems as they are seen from one step above."""
        return tuple((f"{step}{path}", expected or _expected(kinds)) for path, expected in self.problems)


def make_converter() -> Converter:
    """A cattrs converter that structures the classes of `openai_cancel.models`, on top of orjson's."""
    converter = make_orjson_converter()
    configure_converter(converter)
    return converter


def configure_converter(converter: Converter) -> None:
    """Teach a converter of your own the classes of `openai_cancel.models`, both ways."""
    plans: _Plans = {}

    def make_hook(cls: Any) -> _Hook:
        hook = _maker(cls, plans) if _is_model(cls) else _union_hook(get_args(cls), plans)

        def structure(document: Any, _: Any = None) -> Any:
            if type(document) is not dict:
                name = getattr(cls, "__name__", cls)
                raise TypeError(f"a {name} is made of a dict, not of {type(document).__name__}")
            return hook(document)

        return structure

    converter.register_structure_hook_factory(_is_model, make_hook)
    converter.register_structure_hook_factory(_is_union_of_models, make_hook)
    converter.register_unstructure_hook_func(_is_model, Model.to_dict)


@cache
def response_hook() -> Callable[[dict[str, Any]], Response]:
    """What makes a `Response` of a parsed document. What its parts need is made when they first occur."""
    return make_converter().get_structure_hook(Response)  # type: ignore[return-value] # ours ignores the type it is given


def _is_model(cls: Any) -> bool:
    return isinstance(cls, type) and issubclass(cls, Model)


def _is_union_of_models(annotation: Any) -> bool:
    return get_origin(annotation) in {Union, UnionType} and all(map(_is_model, get_args(annotation)))


def _union_hook(classes: Sequence[type[Model]], plans: _Plans) -> _Hook:
    """The hook for objects of several classes: their `type` says which, and `Unknown` takes the rest."""
    members = [cls for cls in classes if cls is not Unknown]
    tagged = {tag: cls for cls in members for tag in _tags(cls)}
    rest = next((cls for cls in members if cls not in tagged.values()), Unknown)
    makers: dict[str, _Hook] = {}

    def structure(document: dict[str, Any]) -> Any:
        try:
            make = makers[document["type"]]
        except (KeyError, TypeError):  # the first of its class, or none that has a class by its `type`
            make = choose(document)
        return make(document)

    def choose(document: dict[str, Any]) -> _Hook:
        cls, tag = members[0], document.get("type")
        if isinstance(tag, str):
            cls = tagged.get(tag, rest)
        elif len(members) > 1:
            cls = next((member for member in members if member.implied_by in document), rest)
        make = _maker(cls, plans)
        if isinstance(tag, str) and tag in tagged:
            makers[tag] = make
        return make

    return structure


def _maker(model: type[Model], plans: _Plans) -> _Hook:
    """What makes the objects of a class."""
    if model in plans:
        return plans[model]
    fields = attrs.fields(attrs.resolve_types(model))
    places: dict[str, _Place] = {}
    for field in fields:
        if field.init:
            kinds = _kinds(field.type, plans)
            plain = next((kind for kind, hook in kinds.items() if hook is None), None)
            places[json_name(field)] = (field.name, plain, kinds)
    if model is Unknown:
        del places["raw"]  # a member of that name is a part of the whole
    whole = "raw" if model is Unknown else "_document"
    defaults = {**{field.name: field.default for field in fields}, whole: None}
    make = _make_all(model, places, defaults, whole)
    if model is Response:
        make = _make_later(make)
    elif model is CompoundFilter:
        make = _bounded(make)
    plans[model] = make
    return make


def _make_all(model: type[Model], places: dict[str, _Place], defaults: dict[str, Any], whole: str) -> _Hook:
    """What makes an object with its fields. It runs no constructor, and looks at each member of a document once."""
    lazy = model is Response

    def make(document: dict[str, Any]) -> Any:
        values = defaults.copy()
        values[whole] = document
        for key, value in document.items():
            if value is None:
                continue
            try:
                name, plain, kinds = places[key]
            except KeyError:  # a member that this version does not know
                continue
            kind: type = type(value)  # pyright: ignore[reportUnknownVariableType] - the type of an Any
            if kind is plain:
                values[name] = value
                continue
            hook: _Hook | None = kinds.get(kind, _refuse)
            if hook is None:
                values[name] = value
                continue
            if lazy and kind is list and len(value) > _LONG:
                del values[name]
                values.setdefault("_parts", {})[name] = partial(hook, value)
                continue
            try:
                values[name] = hook(value)
            except _Mismatch as mismatch:
                values["_problems"] = (*values.get("_problems", ()), *mismatch.at(f".{key}", kinds))
                if mismatch.rest is not None:
                    values[name] = mismatch.rest
        instance = _new(model)
        _set_values(instance, values)
        return instance

    return make


def _make_later(make: _Hook) -> _Hook:
    """What makes a `Response` that makes its fields when the first of them is read."""
    for field in attrs.fields(Response):
        setattr(Response, field.name, _Later(field.name))

    def put_off(document: dict[str, Any]) -> Any:
        instance = _new(Response)
        _set_values(instance, {"_document": document, "_make": make})
        return instance

    return put_off


def _bounded(make: _Hook) -> _Hook:
    """What makes objects that may stand in each other, up to a depth at which no stack ends."""
    under_way = local()

    def structure(document: dict[str, Any]) -> Any:
        depth: int = getattr(under_way, "depth", 0)
        if depth == _DEEPEST:
            raise _Mismatch(("", "fewer levels"))
        under_way.depth = depth + 1
        try:
            return make(document)
        finally:
            under_way.depth = depth

    return structure


def _kinds(annotation: Any, plans: _Plans) -> _Kinds:
    """What a place with this annotation may hold."""
    kinds: _Kinds = {}
    classes: list[type[Model]] = []
    for member in get_args(annotation) if get_origin(annotation) in {Union, UnionType} else [annotation]:
        origin, arguments = get_origin(member), get_args(member)
        if _is_model(member):
            classes.append(member)
        elif origin is list:
            kinds[list] = _list_hook(arguments[0], plans)
        elif origin is dict:
            kinds[dict] = dict[str, Any].copy if arguments[1] is Any else _dict_hook(arguments[1], plans)
        elif origin is Literal:
            kinds |= {type(value): None for value in arguments}
        elif member in _SCALARS:
            kinds |= _SCALARS[member]
        else:
            raise TypeError(f"no rule for a field of type {member!r}")
    if len(classes) > 1:
        kinds[dict] = _union_hook(classes, plans)
    elif classes:
        kinds[dict] = _first_of(classes[0], plans, kinds)
    return kinds


def _first_of(model: type[Model], plans: _Plans, kinds: _Kinds) -> _Hook:
    """The hook for objects of a class until the first of them is there: a class that never occurs costs nothing."""

    def structure(document: dict[str, Any]) -> Any:
        make = kinds[dict] = _maker(model, plans)
        return make(document)

    return structure


def _refuse(_: Any) -> Any:
    raise _Mismatch(("", ""))


def _tags(cls: type[Model]) -> tuple[str, ...]:
    """The values of `type` that mean a class, from the text of its annotation, `Literal[…]`.

    Evaluating all annotations of all classes of a union takes longer than structuring a document.
    """
    annotation = cls.__annotations__.get("type", "")
    if not annotation.startswith("Literal[") or not annotation.endswith("]"):
        return ()
    tags: tuple[str, ...] = ast.literal_eval(f"({annotation[len('Literal[') : -1]},)")
    return tags


def _list_hook(item: Any, plans: _Plans) -> _Hook:
    kinds = _kinds(item, plans)
    may_be_unknown = item is Unknown or Unknown in get_args(item)

    def structure(values: list[object]) -> list[Any]:
        result: list[Any] = []
        if not values:
            return result
        wrong: list[tuple[str, str]] = []
        for index, value in enumerate(values):
            hook: _Hook | None = kinds.get(type(value), _refuse)
            try:
                result.append(value if hook is None else hook(value))
            except _Mismatch as mismatch:
                if may_be_unknown:
                    stray = _new(Unknown)
                    _set_values(stray, {"type": None, "raw": value, "_problems": mismatch.at("", kinds)})
                    result.append(stray)
                else:
                    wrong += mismatch.at(f"[{index}]", kinds)
        if wrong:
            raise _Mismatch(*wrong, rest=result)
        return result

    return structure


def _dict_hook(item: Any, plans: _Plans) -> _Hook:
    kinds = _kinds(item, plans)

    def structure(document: dict[str, object]) -> dict[str, Any]:
        result: dict[str, Any] = {}
        if not document:
            return result
        wrong: list[tuple[str, str]] = []
        for key, value in document.items():
            hook: _Hook | None = kinds.get(type(value), _refuse)
            try:
                result[key] = value if hook is None else hook(value)
            except _Mismatch as mismatch:
                wrong += mismatch.at(member_path(key), kinds)
                if mismatch.rest is not None:
                    result[key] = mismatch.rest
        if wrong:
            raise _Mismatch(*wrong, rest=result)
        return result

    return structure


def _reduce(response: Response) -> str | tuple[Any, ...]:
    """What pickle and copy make another of: the document, with what the call gave.

    They would fail on a deep document, and what makes fields cannot be pickled.
    """
    values = response.__dict__
    if "_document" not in values:
        return response.__reduce_ex__(pickle.DEFAULT_PROTOCOL)
    of_call = {
        field.name: values[field.name] for field in attrs.fields(Response) if field.name in values and not field.init
    }
    return _restore, (marshal.dumps(values["_document"], 4), of_call)


def _restore(document: bytes, of_call: dict[str, Any]) -> Response:
    response = response_hook()(marshal.loads(document))  # noqa: S302 - a pickle is trusted as a whole
    response.__dict__.update(of_call)
    return response


copyreg.pickle(Response, _reduce)


def _expected(kinds: _Kinds) -> str:
    return " or ".join(name for kind, name in _NAMES.items() if kind in kinds and not (kind is int and float in kinds))
