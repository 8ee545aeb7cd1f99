"""What all classes of a response share: they are frozen, keep the server's document, and know what did not fit."""

from __future__ import annotations

import marshal
import reprlib
from threading import RLock
from typing import TYPE_CHECKING, Any, ClassVar, TypeAlias, dataclass_transform

import attrs

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

_NO_DOCUMENT = object()

_MAKING = RLock()
"""Held while attrs makes a class: made twice, it would have lost its defaults."""

_Place: TypeAlias = "tuple[_Place | None, str]"
"""A place of a document: the one that it is in, and the step from there."""

SHORT = reprlib.Repr()
SHORT.maxstring = SHORT.maxother = SHORT.maxlong = 80
"""What a server says can be long."""


@attrs.frozen
class Problem:
    """A place of a document whose value is not what the API says.

    Attributes:
        path: where it is, as a JSONPath (RFC 9535): `$.output[0].content[1].text`.
        expected: what should stand there: `string`, `integer`, `array`, …
    """

    path: str
    expected: str


class _Fields:
    """attrs takes 0.3 ms to make a class, and there are 150: each is made when its fields are first asked for."""

    def __get__(self, instance: object, cls: type[Any]) -> Any:
        if cls is Model:
            return ()
        with _MAKING:
            if "__attrs_attrs__" not in vars(cls):  # another thread may have been first
                attrs.frozen(cls, slots=False, kw_only=True, repr=False, eq=False)
        return vars(cls)["__attrs_attrs__"]


@dataclass_transform(frozen_default=True, kw_only_default=True, field_specifiers=(attrs.field,))
class Model:
    """The base of every class of a response.

    A field is None where the document has null, nothing, or a value of another shape; `to_dict()` tells them apart.
    (Its `type` is then what the class is for.) Of a list or a map only what is of another shape is left out. JSON that
    no class describes, such as the schema of a function's parameters, is shared with the document, and not to be
    changed.
    """

    __attrs_attrs__: ClassVar[Any] = _Fields()

    implied_by: ClassVar[str | None] = None
    """A key that gives an object of this class away where it has no `type`."""

    # Set on instances that come from a document. No attrs fields: what `attrs.evolve` makes is another document.
    _document: ClassVar[Any] = _NO_DOCUMENT
    _problems: ClassVar[tuple[tuple[str, str], ...]] = ()

    def __init__(self, **fields: Any) -> None:
        """Take the fields by their names."""
        with _MAKING:
            attrs.fields(type(self))  # upon which attrs writes the constructor that this one stands in for
        type(self).__init__(self, **fields)

    def __init_subclass__(cls) -> None:
        if cls.__bases__ != (Model,):
            raise TypeError(f"{cls.__bases__[0].__name__} cannot be subclassed: put it into a class of your own.")

    def __setattr__(self, name: str, value: Any) -> None:
        # attrs forbids it, too, but an object that was unpickled may be there before attrs has made its class.
        raise attrs.exceptions.FrozenInstanceError

    def __delattr__(self, name: str) -> None:
        raise attrs.exceptions.FrozenInstanceError

    def to_dict(self) -> Any:
        """The server's document exactly, as a copy; for an object made by hand, its fields that are not None.

        Numbers are what Python's JSON parsers make of them: a float where an integer has more than 64 bits.
        """
        # JSON has nothing that marshal does not know, which copies in C, and deeper than deepcopy can.
        return marshal.loads(marshal.dumps(self._to_document()))  # noqa: S302 - what was just written

    @property
    def extra(self) -> dict[str, Any]:
        """The fields of the document that this class does not know."""
        known = {json_name(field) for field in attrs.fields(type(self)) if field.init}
        document = self.to_dict()
        if document.__class__ is not dict:  # an `Unknown` can be anything
            return {}
        return {name: value for name, value in document.items() if name not in known}

    def _to_document(self) -> Any:
        if self._document is not _NO_DOCUMENT:
            return self._document
        return {
            json_name(field): self._to_json(value)
            for field in attrs.fields(type(self))
            if field.init and (value := getattr(self, field.name)) is not None
        }

    @classmethod
    def _to_json(cls, value: Any) -> Any:
        if isinstance(value, Model):
            return value._to_document()
        # What is in an Any that is a list or a dict has no type for pyright.
        if isinstance(value, (list, tuple)):
            return [cls._to_json(item) for item in value]  # pyright: ignore[reportUnknownVariableType]
        if isinstance(value, dict):
            return {key: cls._to_json(item) for key, item in value.items()}  # pyright: ignore[reportUnknownVariableType]
        # To JSON, a member of a StrEnum or an IntEnum, too, is a string or an integer.
        if isinstance(value, str):
            return str.__str__(value)
        return value if isinstance(value, bool) or not isinstance(value, int) else int(value)

    def _walk_problems(self) -> Iterator[Problem]:
        # No recursion: a document may be deeper than the stack. A path is put together where there is a problem.
        pending: list[tuple[_Place, Any]] = [((None, "$"), self)]
        while pending:
            place, value = pending.pop()
            pending += reversed([((place, step), part) for step, part in _parts(value)])
            if isinstance(value, Model) and value._problems:
                path = _path(place)
                yield from (Problem(path + inside, expected) for inside, expected in value._problems)

    def __eq__(self, other: object) -> bool:
        """Objects are equal if their documents are."""
        if not isinstance(other, Model) or type(self) is not type(other):
            return NotImplemented
        return bool(self._to_document() == other._to_document())

    __hash__: ClassVar[None] = None  # type: ignore[assignment] # the documents that == compares are dictionaries

    def __repr__(self) -> str:
        """The class and its fields that are not None, long values cut short."""
        shown = (f"{name}={SHORT.repr(value)}" for name, value in self.__rich_repr__())
        return f"{type(self).__name__}({', '.join(shown)})"

    def __rich_repr__(self) -> Iterator[tuple[str, Any]]:
        """What rich shows: the fields that are not None. See https://rich.readthedocs.io/en/stable/pretty.html."""
        for field in attrs.fields(type(self)):
            if field.repr and (value := getattr(self, field.name)) is not None:
                yield field.name, value


class Unknown(Model):
    """An object that this version of the package has no class for, or a value that is no object at all.

    Attributes:
        type: its `type`, if that is a string.
        raw: the JSON value, as it came. It is shared with the response, and not to be changed.
    """

    type: str | None = None
    raw: Any = None

    def _to_document(self) -> Any:
        return self.raw


def _parts(value: Any) -> Iterator[tuple[str, Any]]:
    """What stands in a value and may have problems, with the step of the path that leads to it."""
    steps: Iterable[tuple[str, Any]] = ()
    if isinstance(value, Model):
        fields = () if isinstance(value, Unknown) else attrs.fields(type(value))
        steps = ((f".{json_name(field)}", getattr(value, field.name)) for field in fields)
    elif value.__class__ is list:
        steps = ((f"[{index}]", item) for index, item in enumerate(value))
    else:
        steps = ((member_path(key), item) for key, item in value.items())
    return ((step, part) for step, part in steps if isinstance(part, Model) or part.__class__ in {list, dict})


def _path(place: _Place) -> str:
    steps: list[str] = []
    above: _Place | None = place
    while above:
        above, step = above
        steps.append(step)
    return "".join(reversed(steps))


def json_name(field: attrs.Attribute[Any]) -> str:
    """The name of a field in the document: PEP 8's underscore behind a keyword (`async_`) is not part of it."""
    return field.name.removesuffix("_")


def member_path(key: str) -> str:
    """The step of a JSONPath to a member of an object; a long name is cut, for it may stand in many paths."""
    return f".{key}" if len(key) <= SHORT.maxstring and key.isidentifier() else f"[{SHORT.repr(key)}]"
