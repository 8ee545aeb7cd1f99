"""Places of a document whose value is not what the API describes.

A document may be hostile: a path is put together only where there is a problem, and long names in it are cut.
"""

from __future__ import annotations

import reprlib
from typing import TypeAlias

import attrs

__all__ = ["Problem"]

SHORT = reprlib.Repr()
SHORT.maxstring = SHORT.maxother = SHORT.maxlong = 80
"""Cuts what a server sends to a length that fits in a line."""

Place: TypeAlias = "tuple[Place | None, str]"
"""A place of a document: the place around it, or None for the whole document, and the step from there."""


@attrs.frozen
class Problem:
    """A place of a document whose value is not what the API describes.

    Attributes:
        path: the place, as a JSONPath (RFC 9535): `$.output[0].content[1].text`.
        expected: what the API has there: `string`, `integer`, `array`, …
    """

    path: str
    expected: str


def path_to(place: Place) -> str:
    """Return the JSONPath of a place."""
    steps: list[str] = []
    around: Place | None = place
    while around:
        around, step = around
        steps.append(step)
    return "".join(reversed(steps))


def member_path(key: str) -> str:
    """Return the step of a JSONPath to a member of an object. A long name is cut: many paths may contain it."""
    return f".{key}" if len(key) <= SHORT.maxstring and key.isidentifier() else f"[{SHORT.repr(key)}]"
