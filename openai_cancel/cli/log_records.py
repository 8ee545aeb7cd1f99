"""Show records of the log while a command runs."""

import logging
from collections.abc import Generator
from contextlib import contextmanager


@contextmanager
def showing_records(handler: logging.Handler, *names: str) -> Generator[None]:
    """Pass the records of some loggers, from INFO on, to a handler until the block ends.

    Args:
        handler: shows them.
        names: the names of the loggers.
    """
    loggers = [(logger, logger.level) for logger in map(logging.getLogger, names)]
    for logger, _ in loggers:
        logger.addHandler(handler)
        logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        for logger, level in loggers:
            logger.removeHandler(handler)
            logger.setLevel(level)
