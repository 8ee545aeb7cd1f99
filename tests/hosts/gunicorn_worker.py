"""A worker of gunicorn that ends the handlers of `fastapi_app` before gunicorn kills it."""

from typing import ClassVar

from uvicorn_worker import UvicornWorker


class Worker(UvicornWorker):
    CONFIG_KWARGS: ClassVar = {**UvicornWorker.CONFIG_KWARGS, "timeout_graceful_shutdown": 1}
