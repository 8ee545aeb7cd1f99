"""The base of all models, and the class for objects that have no class of their own."""

from __future__ import annotations

import marshal
from typing import TYPE_CHECKING, Any, ClassVar, Self, cast, dataclass_transform

import attrs

from openai_cancel.models.fields import (
    MAKING,
    AttributesOnDemand,
    Structured,
    document_of,
    json_name,
    maker_of,
)
from openai_cancel.models.problems import SHORT, Place, Problem, member_path, path_to

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

__all__ = ["Unknown"]


@dataclass_transform(frozen_default=True, kw_only_default=True, field_specifiers=(attrs.field,))
class Model(Structured):
    """The base of every class of a response.

    A field is None where the document has null, nothing, or a value of another shape; `to_dict()` tells these apart.
    Only `type` is then the type that the class stands for. A list or a map loses only its items of another shape. JSON
    that no class describes, such as the schema of a function's parameters, is shared with the document: do not change
    it.
    """

    __attrs_attrs__: ClassVar[Any] = AttributesOnDemand()

    # The path and the expectation of each wrong value, by the field's name in the document. The name is "" for a value
    # that is not an object at all.
    __problems__: ClassVar[dict[str, tuple[tuple[str, str], ...]]] = {}

    def __init__(self, **fields: Any) -> None:
        """Set the fields by their names."""
        with MAKING:
            attrs.fields(type(self))  # makes attrs write the constructor that this one stands in for
        type(self).__init__(self, **fields)

    def __init_subclass__(cls) -> None:
        if cls.__bases__ != (Model,):
            raise TypeError(f"{cls.__bases__[0].__name__} cannot be subclassed: put it into a class of your own.")

    def __setattr__(self, name: str, value: Any) -> None:
        # attrs forbids it as well, but an unpickled object may exist before attrs has made its class.
        raise attrs.exceptions.FrozenInstanceError

    def __delattr__(self, name: str) -> None:
        raise attrs.exceptions.FrozenInstanceError

    def to_dict(self) -> Any:
        """Return a copy of the server's document, or for an object made by hand, the fields that are not None.

        `pandas.json_normalize([response.to_dict() for response in responses])` is a table with a column for each field,
        such as `usage.total_tokens`. `pandas.DataFrame` leaves objects inside of the document as they are.
        """
        return _load(_dump(self._to_document()))

    @property
    def __dict__(self) -> Any:  # type: ignore[override] # see `Serializable`
        """The document. Of an object made by hand, the fields: there attrs writes them."""
        return self.to_dict() if hasattr(self, "__document__") else self.__values__

    @property
    def extra(self) -> dict[str, Any]:
        """The members of the document for which this class has no field."""
        known = {json_name(field) for field in attrs.fields(type(self))}
        document = self.to_dict()
        if document.__class__ is not dict:  # an `Unknown` may be any value
            return {}
        return {name: value for name, value in document.items() if name not in known}

    @property
    def problems(self) -> tuple[Problem, ...]:
        """Every place of the document whose value is not what the API describes."""
        return tuple(self._find_problems())

    def _find_problems(self) -> Iterator[Problem]:
        # Without recursion, because a document may be deeper than the stack.
        pending: list[tuple[Place, Any]] = [((None, "$"), self)]
        while pending:
            place, value = pending.pop()
            pending += reversed([((place, step), part) for step, part in _parts(value)])
            if isinstance(value, Model) and value.__problems__:
                path = path_to(place)
                for name in ("", *map(json_name, attrs.fields(type(value)))):
                    for inside, expected in value.__problems__.get(name, ()):
                        yield Problem(path + inside, expected)

    def _to_document(self) -> Any:
        if hasattr(self, "__document__"):
            return document_of(self)
        return {
            json_name(field): self._to_json(value)
            for field in attrs.fields(type(self))
            if (value := getattr(self, field.name)) is not None
        }

    @classmethod
    def _to_json(cls, value: Any) -> Any:
        if isinstance(value, Model):
            return value._to_document()
        if isinstance(value, (list, tuple)):
            return [cls._to_json(item) for item in cast("list[Any]", value)]
        if isinstance(value, dict):
            return {key: cls._to_json(item) for key, item in cast("dict[str, Any]", value).items()}
        # JSON has only plain strings and integers, and no members of a StrEnum or an IntEnum.
        if isinstance(value, str):
            return str.__str__(value)
        return value if isinstance(value, bool) or not isinstance(value, int) else int(value)

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle or copy an object as its document, which may be deeper than pickle can follow."""
        if not hasattr(self, "__document__"):
            return _restore, (type(self), None, self.__values__.copy())
        document = _dump(self._to_document())
        made = {field.name for field in attrs.fields(type(self))}
        kept = {name: value for name, value in self.__values__.copy().items() if name not in made}
        return _restore, (type(self), document, kept)

    def __eq__(self, other: object) -> bool:
        """Compare the documents."""
        if not isinstance(other, Model) or type(self) is not type(other):
            return NotImplemented
        return bool(self._to_document() == other._to_document())

    __hash__: ClassVar[None] = None  # type: ignore[assignment] # what `==` compares are dictionaries

    def __repr__(self) -> str:
        """Show the class and the fields that are not None. Long values are cut."""
        shown = (f"{name}={SHORT.repr(value)}" for name, value in self.__rich_repr__())
        return f"{type(self).__name__}({', '.join(shown)})"

    def __rich_repr__(self) -> Iterator[tuple[str, Any]]:
        """Yield the fields that are not None, for rich (https://rich.readthedocs.io/en/stable/pretty.html)."""
        for field in attrs.fields(type(self)):
            if field.repr and (value := getattr(self, field.name)) is not None:
                yield field.name, value


class Unknown(Model):
    """An object for which this version of the package has no class, or a value that is not an object.

    Attributes:
        type: the object's `type`, if that is a string.
        raw: the JSON value as the server sent it. It is shared with the response: do not change it.
    """

    takes_anything: ClassVar[bool] = True

    type: str | None = None
    raw: Any = None

    @classmethod
    def __structure__(cls, document: Any) -> Self:
        unknown = super().__structure__(document)
        values = unknown.__values__
        values["raw"] = document
        if document.__class__ is not dict:
            values["type"] = None
        return unknown

    def _to_document(self) -> Any:
        return self.raw


def _parts(value: Any) -> Iterator[tuple[str, Any]]:
    """Yield the parts of a value that may have problems, each with its step of a path."""
    steps: Iterable[tuple[str, Any]]
    if isinstance(value, Unknown):
        steps = [(".type", value.type)]  # `raw` is JSON and has no problems
    elif isinstance(value, Model):
        steps = ((f".{json_name(field)}", getattr(value, field.name)) for field in attrs.fields(type(value)))
    elif value.__class__ is list:
        steps = ((f"[{index}]", item) for index, item in enumerate(value))
    else:
        steps = ((member_path(key), item) for key, item in value.items())
    return ((step, part) for step, part in steps if isinstance(part, Model) or part.__class__ in {list, dict})


def _dump(document: Any) -> bytes:
    """Serialize a document with marshal, which knows all that JSON has, is fast, and goes deeper than pickle."""
    return marshal.dumps(document, 4)  # the newest version that every supported Python reads


def _load(data: bytes) -> Any:
    return marshal.loads(data)  # noqa: S302 - this process wrote it, or it is in a pickle, which is trusted as a whole


def _restore(cls: type[Model], document: bytes | None, values: dict[str, Any]) -> Model:
    """Return the object that `__reduce__` described."""
    instance = object.__new__(cls) if document is None else maker_of(cls)(_load(document))
    instance.__values__.update(values)
    return instance
