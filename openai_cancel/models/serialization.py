"""`Serializable`: objects that other libraries serialize as JSON documents."""

from __future__ import annotations

from typing import Any


class Serializable:
    """An object that stands for a JSON document, for whatever serializes it.

    Functions that know nothing of an object take its attributes: `json.dumps(default=vars)`, and FastAPI if a handler
    declares no type. pydantic, and FastAPI if a handler declares a type, ask the class.
    """

    __slots__ = ()

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
