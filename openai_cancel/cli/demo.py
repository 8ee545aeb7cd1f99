"""The command `demo`, which shows what this package does."""

from typing import Annotated

from openai_cancel.cli.options import Flag
from openai_cancel.cli.output import is_read_by_people


def demo(*, fast: Annotated[bool, Flag] = False) -> int:
    """Show in half a minute what this package does, on an emulated server, without a key or a model.

    It cancels a response, lets a guarded run fail, stops thousands of responses, and cleans up after a killed process.
    Enter skips to the next part.

    ```
    openai-cancel demo
    openai-cancel demo --fast
    ```

    Args:
        fast: Show everything without pauses. This is the default if the output is not a terminal.
    """
    from openai_cancel.cli.demo_parts import show_parts  # slow to import

    return show_parts(fast=fast or not is_read_by_people())
