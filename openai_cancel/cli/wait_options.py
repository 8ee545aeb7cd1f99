"""The options of `wait`."""

import math
from dataclasses import dataclass
from typing import Annotated, Literal

from cyclopts import Parameter

from openai_cancel.cli.exit_status import UsageError
from openai_cancel.cli.options import LIMITS, Count, JsonOrText, Quiet, Seconds
from openai_cancel.errors import ConfigurationError


@Parameter(name="*", group=LIMITS)
@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class WaitOptions:
    """The options of `wait`.

    Attributes:
        timeout: The time to wait for each response. Without it, there is no limit.
        queued_timeout: The time after which a response that is still queued counts as timed out.
        stalled_timeout: The time without any change of a response after which it counts as timed out.
        poll: The maximum time between two polls of a response. They are frequent at first.
        on_abandon: What to do with responses that are still running after a timeout or Ctrl-C.
        concurrency: The number of responses to wait for at once.
        as_json: Print JSON lines. For files, it is the default if the output is not a terminal. --no-json prints text.
        quiet: Print only what goes wrong. With --json, leave out only the totals.
    """

    timeout: Seconds | None = None
    queued_timeout: Seconds | None = None
    stalled_timeout: Seconds | None = None
    poll: Seconds = 60.0
    on_abandon: Annotated[Literal["stop", "leave"], Parameter(metavar="WHAT")] = "stop"
    concurrency: Count = 1000
    as_json: JsonOrText = None
    quiet: Quiet = False

    def check(self) -> None:
        """Refuse limits that cannot work.

        Raises:
            UsageError: one cannot work. The message names its option.
        """
        from openai_cancel.checks import check_limit  # after the help, which does without it
        from openai_cancel.retry import MIN_POLL

        whole = math.inf if self.timeout is None else self.timeout
        try:
            check_limit("--poll", self.poll, minimum=MIN_POLL)
            for option, value in (
                ("--queued-timeout", self.queued_timeout),
                ("--stalled-timeout", self.stalled_timeout),
            ):
                if (check_limit(option, value) or 0.0) > whole:
                    raise UsageError(f"{option} ({value:g} s) must not be longer than --timeout ({whole:g} s).")
        except ConfigurationError as error:
            raise UsageError(f"{error}") from error


DEFAULT_WAIT = WaitOptions()
