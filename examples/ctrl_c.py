"""A script that leaves nothing running when it is ended by Ctrl-C, or by the SIGTERM of a deploy: `ctrl_c.py ID`."""

import signal
import sys
import time

from openai_cancel import Session


def leave(number: int, _: object) -> None:
    """Python dies of a SIGTERM without a word; as an exception, it leaves every block in order."""
    sys.exit(128 + number)


signal.signal(signal.SIGTERM, leave)

with Session() as session, session.guard(sys.argv[1]):
    while not (response := session.retrieve(sys.argv[1])).is_terminal:
        print(response.status, flush=True)
        time.sleep(1)
print(response.output_text)
