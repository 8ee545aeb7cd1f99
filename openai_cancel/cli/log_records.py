"""Show records of the log while a command runs."""

import logging
from collections.abc import Generator
from contextlib import contextmanager


@contextmanager
def showing_records(handler: logging.Handler, *loggers: logging.Logger) -> Generator[None]:
    """Pass the records of some loggers, from INFO on, to a handler until the block ends.

    Args:
        handler: shows them.
        loggers: the loggers.
    """
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.addHandler(handler)
        logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.removeHandler(handler)
            logger.setLevel(level)
