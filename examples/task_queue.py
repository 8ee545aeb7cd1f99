"""A task of Celery whose response ends with it: `celery -A task_queue worker`, with a `celeryconfig.py` of yours.

    result = task_queue.answer.delay(response_id)
    result.revoke(terminate=True, signal="SIGUSR1")

The signal is the one of the soft time limit. It ends the task by an exception, and that stops the response; SIGTERM and
SIGKILL give the task no time to.
"""

from celery import Celery

from openai_cancel import Session

app = Celery("task_queue")
app.config_from_object("celeryconfig")


@app.task(soft_time_limit=600, time_limit=630)
def answer(response_id: str) -> str:
    """Wait for the response. The session is opened here, for none crosses the fork of a worker."""
    with Session() as session:
        return session.wait(response_id, grace=20).output_text
