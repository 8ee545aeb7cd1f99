"""Give responses 15 minutes, and stop those that are over time: `ledger_script.py URL ID…`.

URL is a database, such as sqlite:///ledger.db. Run the script as often as you like, also from cron.
"""

import sys

from openai_cancel import Session
from openai_cancel.ledger import Ledger


def main(url: str, *ids: str) -> None:
    """Record the responses, stop those whose time is over, and print what is left."""
    with Session(ledger=Ledger(url)) as session:
        for response_id in ids:
            session.ledger.track(response_id, ttl=15 * 60, labels={"from": "script"})
        for outcome in session.ledger.sweep():
            print(outcome.response_id, outcome.verdict)
        for entry in session.ledger.entries(labels={"from": "script"}):
            print(entry.response_id, entry.state)
        session.ledger.purge(older_than=7 * 24 * 3600)


if __name__ == "__main__":
    main(*sys.argv[1:])
