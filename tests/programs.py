"""Run programs, such as the examples, and check how they end."""

import asyncio
import os
import re
import subprocess

STRICT = ("-X", "dev", "-W", "error")
"""Options of Python: warnings are errors, and what is left open is reported."""


async def execute(*command: object, status: int = 0, complaints: str = "") -> str:
    """Run a program, check its status and stderr, and return its output.

    Args:
        command: the program and its arguments.
        status: the expected exit status.
        complaints: a regular expression for the expected stderr.
    """
    done = await asyncio.to_thread(
        subprocess.run, [*map(str, command)],
        env=os.environ, capture_output=True, text=True, timeout=30, check=False,
    )  # fmt: skip
    # On a busy machine, asyncio's debug mode reports callbacks that took more than 0.1 s.
    complained = "\n".join(line for line in done.stderr.splitlines() if not re.match("Executing .* took", line))
    assert done.returncode == status, complained
    assert re.fullmatch(complaints, complained)
    return done.stdout
