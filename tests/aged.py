"""Responses of the emulator that are older than the test."""

import math

from conftest import QuickClock

from openai_cancel.emulator import Emulator, Script


def add_aged(
    server: Emulator,
    clock: QuickClock,
    age: float,
    *,
    background: bool = True,
    script: Script | None = None,
    runs_for: float = math.inf,
    **metadata: str,
) -> str:
    """Put a response into the emulator that was created some seconds ago, and return its id."""
    now, clock.now = clock.now, clock.now - age
    name = server.add(script or Script(runs_for=runs_for), background=background)
    clock.now = now
    server.responses[name].request["metadata"] = metadata
    return name
