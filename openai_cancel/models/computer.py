"""Computer use: actions and their results.

See https://platform.openai.com/docs/api-reference/responses/object.
"""

from __future__ import annotations  # evaluated when a class is first used, not at import

from typing import Literal, TypeAlias

from openai_cancel.models.agents import Agent
from openai_cancel.models.content import ComputerScreenshot
from openai_cancel.models.shared import Model, Unknown

__all__ = [
    "ClickAction",
    "ComputerAction",
    "ComputerCall",
    "ComputerCallOutput",
    "DoubleClickAction",
    "DragAction",
    "KeypressAction",
    "MoveAction",
    "Point",
    "SafetyCheck",
    "ScreenshotAction",
    "ScrollAction",
    "TypeAction",
    "WaitAction",
]


class ClickAction(Model):
    """A click at a position in pixels."""

    type: Literal["click"] = "click"
    button: Literal["left", "right", "wheel", "back", "forward"] | str | None = None
    x: int | None = None
    y: int | None = None
    keys: list[str] | None = None


class DoubleClickAction(Model):
    """A double click at a position in pixels."""

    type: Literal["double_click"] = "double_click"
    keys: list[str] | None = None
    x: int | None = None
    y: int | None = None


class Point(Model):
    """A position on the screen, in pixels."""

    x: int | None = None
    y: int | None = None


class DragAction(Model):
    """A drag along a path."""

    type: Literal["drag"] = "drag"
    path: list[Point | Unknown] | None = None
    keys: list[str] | None = None


class KeypressAction(Model):
    """A press of one or more keys."""

    type: Literal["keypress"] = "keypress"
    keys: list[str] | None = None


class MoveAction(Model):
    """A move of the pointer to a position in pixels."""

    type: Literal["move"] = "move"
    x: int | None = None
    y: int | None = None
    keys: list[str] | None = None


class ScreenshotAction(Model):
    """A request for a screenshot."""

    type: Literal["screenshot"] = "screenshot"


class ScrollAction(Model):
    """A scroll by a distance in pixels."""

    type: Literal["scroll"] = "scroll"
    scroll_x: int | None = None
    scroll_y: int | None = None
    x: int | None = None
    y: int | None = None
    keys: list[str] | None = None


class TypeAction(Model):
    """Text to type."""

    type: Literal["type"] = "type"
    text: str | None = None


class WaitAction(Model):
    """A pause."""

    type: Literal["wait"] = "wait"


ComputerAction: TypeAlias = (
    ClickAction
    | DoubleClickAction
    | DragAction
    | KeypressAction
    | MoveAction
    | ScreenshotAction
    | ScrollAction
    | TypeAction
    | WaitAction
    | Unknown
)


class SafetyCheck(Model):
    """A safety check that the user must acknowledge before the computer is used further."""

    id: str | None = None
    code: str | None = None
    message: str | None = None


class ComputerCall(Model):
    """One or more actions to perform on a computer."""

    type: Literal["computer_call"] = "computer_call"
    id: str | None = None
    call_id: str | None = None
    status: Literal["in_progress", "completed", "incomplete"] | str | None = None
    pending_safety_checks: list[SafetyCheck | Unknown] | None = None
    action: ComputerAction | None = None
    actions: list[ComputerAction] | None = None
    agent: Agent | None = None


class ComputerCallOutput(Model):
    """The screenshot after the actions of a computer call."""

    type: Literal["computer_call_output"] = "computer_call_output"
    id: str | None = None
    call_id: str | None = None
    status: Literal["completed", "incomplete", "failed", "in_progress"] | str | None = None
    output: ComputerScreenshot | Unknown | None = None
    acknowledged_safety_checks: list[SafetyCheck | Unknown] | None = None
    created_by: str | None = None
    agent: Agent | None = None
