"""Values that do not show in the locals of a traceback, since they are or may contain secrets."""

import asyncio
import inspect
from collections.abc import Callable, Coroutine, Mapping
from functools import wraps
from types import FunctionType
from typing import Any, ParamSpec, SupportsIndex, TypeVar, cast

_P = ParamSpec("_P")
_T = TypeVar("_T")


class Secret(str):
    """A string that does not show in a repr, and so not in the locals of a traceback."""

    __slots__ = ()

    def __repr__(self) -> str:
        """Return three asterisks."""
        return "'***'"

    def __getitem__(self, index: SupportsIndex | slice) -> "Secret":
        """Return a part, which is a secret, too: rich and structlog show the first part of a long string."""
        return Secret(super().__getitem__(index))


class SecretMapping(dict[Any, Any]):
    """A copy of a mapping whose values do not show in a repr."""

    __slots__ = ()

    def __init__(self, values: Mapping[Any, Any]) -> None:
        super().__init__((name, hidden(value)) for name, value in values.items())


class SecretFunction:
    """A function that does not show in a repr: a `functools.partial` or a method may hold a secret.

    Attributes:
        function: the function.
    """

    __slots__ = ("function",)

    def __init__(self, function: Callable[[], Any]) -> None:
        self.function: Callable[[], Any] = function

    def __call__(self) -> Any:
        """Call the function."""
        return self.function()


class SecretValue:
    """The place of a value of a wrong type, which may contain a secret all the same.

    Attributes:
        kind: the name of its type.
    """

    def __init__(self, value: object) -> None:
        self.kind: str = type(value).__name__

    def __repr__(self) -> str:
        """Return three asterisks."""
        return "***"


def hidden(value: _T) -> _T:
    """Return a value that the locals of a traceback do not show.

    This is a string, a mapping, a function, or `SecretValue` for others. None and plain functions stay as they are.
    """
    if value is None or isinstance(value, FunctionType | SecretFunction):
        return value
    if callable(value):
        return cast("_T", SecretFunction(value))
    if isinstance(value, str):
        return cast("_T", Secret(value))
    if isinstance(value, Mapping):
        return cast("_T", SecretMapping(cast("Mapping[Any, Any]", value)))
    return cast("_T", value if isinstance(value, SecretValue) else SecretValue(value))


def hide_options(method: Callable[_P, Coroutine[Any, Any, _T]]) -> Callable[_P, Coroutine[Any, Any, _T]]:
    """Hide the `headers` and the `query` of an async method before its coroutine is made.

    The method itself would do it too late. If its coroutine is cancelled before the first step, a traceback shows the
    arguments as they were passed.
    """

    @wraps(method)
    def call(*args: _P.args, **options: _P.kwargs) -> Coroutine[Any, Any, _T]:
        for name in ("headers", "query"):
            if name in options:
                options[name] = hidden(options[name])
        try:
            return method(*args, **options)
        finally:
            del args, options  # what cannot be bound, such as a misspelt option, would show here

    return getattr(inspect, "markcoroutinefunction", _mark)(call)


def _mark(function: _T) -> _T:
    """Make `asyncio.iscoroutinefunction` true for a function, as `inspect.markcoroutinefunction` does since 3.12."""
    function._is_coroutine = asyncio.coroutines._is_coroutine  # type: ignore[attr-defined]  # untyped
    return function


def kind_of(value: object) -> str:
    """Return the name of a value's type, also of one that is hidden."""
    return value.kind if isinstance(value, SecretValue) else type(value).__name__
