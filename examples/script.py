"""Stop the responses whose ids are the arguments, and say what became of each."""

import sys

from openai_cancel import Session

with Session() as session:
    for response_id in sys.argv[1:]:
        outcome = session.stop(response_id)
        print(response_id, outcome.verdict, outcome.error or "")
