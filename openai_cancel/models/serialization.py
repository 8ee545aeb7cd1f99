"""`Serializable`: objects that other libraries serialize as JSON documents."""

from __future__ import annotations

from typing import Any, ClassVar


class AttributesElsewhere:
    """The `__attrs_attrs__` of classes that do not have it in their own dictionary."""

    def __get__(self, instance: object, cls: type[Any]) -> Any:
        """Return the attributes of a class that attrs has made."""
        return cls.__attributes__


class Serializable:
    """An object that stands for a JSON document, for whatever serializes it.

    Functions that know nothing of an object take its attributes: `json.dumps(default=vars)`, and FastAPI if a handler
    declares no type. pydantic, and FastAPI if a handler declares a type, ask the class.

    msgspec takes what an object has in its memory, without asking the object, if the dictionary of its class has
    `__attrs_attrs__`: of a response that is nothing before a field is read. Otherwise it asks `enc_hook`, or refuses.
    """

    __slots__ = ()

    __attrs_attrs__: ClassVar[Any] = AttributesElsewhere()
    __attributes__: ClassVar[Any]

    @classmethod
    def __attrs_init_subclass__(cls) -> None:
        """Move the attributes out of the dictionary of a class that attrs has just made."""
        cls.__attributes__ = cls.__attrs_attrs__
        del cls.__attrs_attrs__

    def to_dict(self) -> Any:
        """Return the document."""
        raise NotImplementedError

    @property
    def __dict__(self) -> Any:  # type: ignore[override] # `object` declares it as an attribute that can be set
        """The document."""
        return self.to_dict()

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: Any) -> dict[str, Any]:
        """Return the schema by which pydantic serializes the objects.

        See https://docs.pydantic.dev/latest/concepts/types/#customizing-validation-with-__get_pydantic_core_schema__.
        """
        document = {"type": "any"}
        serialization = {"type": "function-plain", "function": cls.to_dict, "return_schema": document}
        return {"type": "is-instance", "cls": cls, "serialization": serialization}
