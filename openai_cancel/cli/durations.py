"""Durations as people read them."""

_UNITS = ((86400.0, "d"), (3600.0, "h"), (60.0, "min"))


def format_duration(seconds: float) -> str:
    """Return a duration in the largest unit of which it has at least two, such as "90 s", "2 min" or "3 h"."""
    for size, unit in _UNITS:
        if seconds >= 2 * size:
            return f"{seconds / size:,.0f} {unit}"
    return f"{seconds:,.0f} s"
