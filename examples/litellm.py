"""Stop responses behind a LiteLLM proxy: `litellm.py SECONDS FILE`. Each line of the file is `ID NAME`.

Set OPENAI_BASE_URL and OPENAI_API_KEY to the proxy's, such as http://localhost:4000/v1 and its master key.
"""

import sys
from pathlib import Path

from openai_cancel import Session


def main(seconds: float, lines: list[str]) -> None:
    """Stop all responses. LiteLLM returns a new id in each reply; an outcome keeps the id that was passed in."""
    names = dict(line.split(maxsplit=1) for line in lines)
    with Session() as session:
        # Check again after some seconds: some responses went on after `cancelled`.
        for outcome in session.stop_many(names, confirm=seconds):
            new_id = outcome.response is not None and outcome.response.id != outcome.response_id
            suffix = ", with a new id" if new_id else ""
            print(f"{names[outcome.response_id]}: {outcome.verdict}{suffix}")


if __name__ == "__main__":
    main(float(sys.argv[1]), Path(sys.argv[2]).read_text().splitlines())
