"""LiteLLM's proxy, which calls a response by another id in each reply: `litellm.py SECONDS FILE`, of lines `ID NAME`.

OPENAI_BASE_URL and OPENAI_API_KEY are the proxy's, such as http://localhost:4000/v1 and its master key.
"""

import sys
from pathlib import Path

from openai_cancel import Session


def main(seconds: float, lines: list[str]) -> None:
    """Stop them all. An outcome has the id as it was given, which leads back to one's own records."""
    names = dict(line.split(maxsplit=1) for line in lines)
    with Session() as session:
        # It was seen to run on after `cancelled`: look again after so many seconds.
        for outcome in session.stop_many(names, confirm=seconds):
            other = outcome.response is not None and outcome.response.id != outcome.response_id
            print(f"{names[outcome.response_id]}: {outcome.verdict}{', by another id' * other}")


if __name__ == "__main__":
    main(float(sys.argv[1]), Path(sys.argv[2]).read_text().splitlines())
