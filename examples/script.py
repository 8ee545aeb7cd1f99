"""Stop responses from a script: `script.py ID…`."""

import sys

from openai_cancel import Session

with Session() as session:
    for response_id in sys.argv[1:]:
        outcome = session.stop(response_id)
        print(response_id, outcome.verdict, outcome.error or "")
