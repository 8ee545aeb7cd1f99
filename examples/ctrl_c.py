"""Stop a response when the script is ended by Ctrl-C, or by the SIGTERM of a deployment: `ctrl_c.py ID`."""

import signal
import sys
import time

from openai_cancel import Session


def terminate(number: int, _: object) -> None:
    """Raise SystemExit, so that every `with` block is left. By default, SIGTERM ends Python at once."""
    sys.exit(128 + number)


signal.signal(signal.SIGTERM, terminate)

with Session() as session, session.guard(sys.argv[1]):
    while not (response := session.retrieve(sys.argv[1])).is_terminal:
        print(response.status, flush=True)
        time.sleep(1)
print(response.output_text)
