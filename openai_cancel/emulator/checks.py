"""Checks of the emulator's arguments. Each error says what is wrong and what to pass instead."""

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeGuard

if TYPE_CHECKING:
    import attrs  # whose Attribute is generic for type checkers alone

MAX_PORT = 65535


def is_number(value: object) -> TypeGuard[int | float]:
    """Return whether a value is an int or a float. A bool is neither."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def check_seconds(_: object, attribute: "attrs.Attribute[Any]", value: object) -> None:
    """Validate an attrs field that holds seconds; `math.inf` is allowed.

    Raises:
        ValueError: the value is negative, NaN or not a number.
    """
    if not (is_number(value) and value >= 0):
        raise ValueError(f"{attribute.name!r} must be a number of seconds, 0 or more; got {value!r}")


def check_length(_: object, attribute: "attrs.Attribute[Any]", value: object) -> None:
    """Validate an attrs field that holds a number of bytes, or None.

    Raises:
        ValueError: the value is negative or not a whole number.
    """
    if value is not None and not (is_number(value) and isinstance(value, int) and value >= 0):
        raise ValueError(f"{attribute.name!r} must be a whole number of bytes, 0 or more, or None; got {value!r}")


def one_of(*choices: object) -> Callable[[object, "attrs.Attribute[Any]", object], None]:
    """Return a validator for an attrs field that has only these values."""

    def check(_: object, attribute: "attrs.Attribute[Any]", value: object) -> None:
        if value not in choices:
            raise ValueError(f"{attribute.name!r} must be one of {', '.join(map(repr, choices))}; got {value!r}")

    return check


def check_host(host: object) -> None:
    """Check the address to listen on.

    Raises:
        ValueError: it is empty, which would be every address of this machine, or not a string.
    """
    if not (isinstance(host, str) and host):
        raise ValueError(f"host must be an address such as '127.0.0.1', or '0.0.0.0' for all; got {host!r}")


def check_port(port: object) -> None:
    """Check the port to listen on.

    Raises:
        ValueError: it is not a port.
    """
    if not (is_number(port) and isinstance(port, int) and 0 <= port <= MAX_PORT):
        raise ValueError(f"port must be a whole number from 0 to {MAX_PORT}, where 0 picks a free port; got {port!r}")


def check_rate_limit(rate: object) -> None:
    """Check a number of requests per second.

    Raises:
        ValueError: it is not a number above 0.
    """
    # The emulator tells its client to wait for 1 / rate: that must be a number, too.
    if not (is_number(rate) and rate > 0 and 1 / rate < math.inf):
        raise ValueError(
            "rate_limit must be a number of requests per second above 0, such as 0.5 for one request every two "
            f"seconds, or None for no limit; got {rate!r}"
        )


def check_store_delay(seconds: object) -> None:
    """Check a number of seconds.

    Raises:
        ValueError: it is negative, NaN or not a number.
    """
    if not (is_number(seconds) and seconds >= 0):
        raise ValueError(f"store_delay must be a number of seconds, 0 or more; got {seconds!r}")


def check_replicas(replicas: object) -> None:
    """Check a number of replicas.

    Raises:
        ValueError: it is not a whole number above 0.
    """
    if not (is_number(replicas) and isinstance(replicas, int) and replicas >= 1):
        raise ValueError(f"replicas must be a whole number, 1 or more; got {replicas!r}")
