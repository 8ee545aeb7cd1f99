"""Stop a response when its Celery task ends early. Run `celery -A task_queue worker` beside your `celeryconfig.py`.

    result = task_queue.answer.delay(response_id)
    result.revoke(terminate=True, signal="SIGUSR1")

SIGUSR1 raises SoftTimeLimitExceeded in the task, as the soft time limit does, so `wait` can stop the response. SIGTERM
and SIGKILL end the process at once, and the response runs on.
"""

from celery import Celery

from openai_cancel import Session

app = Celery("task_queue")
app.config_from_object("celeryconfig")


@app.task(soft_time_limit=600, time_limit=630)
def answer(response_id: str) -> str:
    """Wait for a response. Open the session in the task: it cannot be shared with a forked worker process."""
    with Session() as session:
        return session.wait(response_id, grace=20).output_text
