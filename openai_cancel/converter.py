"""cattrs converters that structure JSON documents as the classes of `openai_cancel.models`.

The classes structure themselves (see `openai_cancel.models.fields`): strictly, without coercion, and without losing
anything that a server sends. Here cattrs learns to let them.
"""

from collections.abc import Callable
from functools import cache
from types import UnionType
from typing import Any, Union, cast, get_args, get_origin

from cattrs import Converter, global_converter
from cattrs.preconf.orjson import make_converter as make_orjson_converter

from openai_cancel.models import Response, Unknown
from openai_cancel.models.fields import maker_of, union_maker
from openai_cancel.models.serialization import Serializable
from openai_cancel.models.shared import Model


def make_converter() -> Converter:
    """Return a cattrs converter for the classes of `openai_cancel.models`, on top of the one for orjson."""
    converter = make_orjson_converter()
    configure_converter(converter)
    return converter


def configure_converter(converter: Converter) -> None:
    """Register the classes of `openai_cancel.models` with a converter, in both directions."""

    def make_hook(cls: Any) -> Callable[[Any, Any], Any]:
        make = maker_of(cls) if _is_model(cls) else union_maker((*get_args(cls), Unknown))

        def structure(document: Any, _: Any = None) -> Any:
            if type(document) is not dict:
                name = getattr(cls, "__name__", cls)
                raise TypeError(f"a {name} is made of a dict, not of {type(document).__name__}")
            return make(document)

        return structure

    converter.register_structure_hook_factory(_is_model, make_hook)
    converter.register_structure_hook_factory(_is_union_of_models, make_hook)
    converter.register_unstructure_hook_func(_is_serializable, _to_dict)


@cache
def response_hook() -> Callable[[dict[str, Any]], Response]:
    """Return the function that makes a `Response` from a parsed document."""
    # The hook ignores its second argument, the class.
    return cast("Callable[[dict[str, Any]], Response]", make_converter().get_structure_hook(Response))


def _is_serializable(cls: Any) -> bool:
    return isinstance(cls, type) and issubclass(cls, Serializable)


def _to_dict(value: Serializable) -> Any:
    return value.to_dict()


def _is_model(cls: Any) -> bool:
    return isinstance(cls, type) and issubclass(cls, Model)


def _is_union_of_models(annotation: Any) -> bool:
    return get_origin(annotation) in {Union, UnionType} and all(map(_is_model, get_args(annotation)))


configure_converter(global_converter)  # so that `cattrs.structure` and `cattrs.unstructure` need no preparation
