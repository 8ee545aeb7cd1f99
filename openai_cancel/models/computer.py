"""The use of a computer: what the model asked for, and what it saw.

See https://platform.openai.com/docs/api-reference/responses/object.
"""

from __future__ import annotations  # evaluated when a class is first used, and not for all at import

from typing import Literal, TypeAlias

from openai_cancel.models.content import ComputerScreenshot
from openai_cancel.models.shared import Model, Unknown


class ClickAction(Model):
    """A click; places on the screen are in pixels."""

    type: Literal["click"] = "click"
    button: Literal["left", "right", "wheel", "back", "forward"] | str | None = None
    x: int | None = None
    y: int | None = None
    keys: list[str] | None = None


class DoubleClickAction(Model):
    """A double click."""

    type: Literal["double_click"] = "double_click"
    keys: list[str] | None = None
    x: int | None = None
    y: int | None = None


class Point(Model):
    """A place on the screen, in pixels."""

    x: int | None = None
    y: int | None = None


class DragAction(Model):
    """A drag along a path."""

    type: Literal["drag"] = "drag"
    path: list[Point | Unknown] | None = None
    keys: list[str] | None = None


class KeypressAction(Model):
    """Keys that are pressed."""

    type: Literal["keypress"] = "keypress"
    keys: list[str] | None = None


class MoveAction(Model):
    """A move of the pointer."""

    type: Literal["move"] = "move"
    x: int | None = None
    y: int | None = None
    keys: list[str] | None = None


class ScreenshotAction(Model):
    """A picture of the screen."""

    type: Literal["screenshot"] = "screenshot"


class ScrollAction(Model):
    """A scroll, by pixels."""

    type: Literal["scroll"] = "scroll"
    scroll_x: int | None = None
    scroll_y: int | None = None
    x: int | None = None
    y: int | None = None
    keys: list[str] | None = None


class TypeAction(Model):
    """Text that is typed."""

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
    """A doubt that the user must clear before the computer is used further."""

    id: str | None = None
    code: str | None = None
    message: str | None = None


class ComputerCall(Model):
    """What to do with a computer."""

    type: Literal["computer_call"] = "computer_call"
    id: str | None = None
    call_id: str | None = None
    status: Literal["in_progress", "completed", "incomplete"] | str | None = None
    pending_safety_checks: list[SafetyCheck | Unknown] | None = None
    action: ComputerAction | None = None
    actions: list[ComputerAction] | None = None


class ComputerCallOutput(Model):
    """What the screen showed afterwards."""

    type: Literal["computer_call_output"] = "computer_call_output"
    id: str | None = None
    call_id: str | None = None
    status: Literal["completed", "incomplete", "failed", "in_progress"] | str | None = None
    output: ComputerScreenshot | Unknown | None = None
    acknowledged_safety_checks: list[SafetyCheck | Unknown] | None = None
    created_by: str | None = None
