"""Stop what killed Celery workers leave running: `celery -A ledger_tasks worker --beat`, with your `celeryconfig.py`.

OPENAI_CANCEL_LEDGER is a database, such as postgresql://user@host/database.
"""

import os

from celery import Celery
from celery.signals import worker_process_init, worker_process_shutdown

from openai_cancel import Session
from openai_cancel.ledger import Ledger

app = Celery("ledger_tasks", config_source="celeryconfig")
app.conf.beat_schedule = {"sweep": {"task": "ledger_tasks.sweep", "schedule": 30.0}}
sessions: list[Session] = []


@worker_process_init.connect  # after the fork, which an open session does not survive
def open_session(**_: object) -> None:
    """Open the session of this process."""
    sessions.append(Session(ledger=Ledger(os.environ["OPENAI_CANCEL_LEDGER"])).open())


@worker_process_shutdown.connect
def close_session(**_: object) -> None:
    """Stop the responses of tasks that still run, and close the session."""
    sessions.pop().close()


@app.task
def answer(response_id: str) -> str:
    """Wait for a response. If this process is killed, a sweep stops it a minute later."""
    return sessions[0].wait(response_id).output_text


@app.task
def sweep() -> dict[str, str]:
    """Stop what killed workers have left, and return their verdicts."""
    return {outcome.response_id: outcome.verdict for outcome in sessions[0].ledger.sweep()}
