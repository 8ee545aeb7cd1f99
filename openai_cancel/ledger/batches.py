"""Ids from an iterable or an async iterable, in batches. They are read as they are needed."""

from collections.abc import AsyncGenerator, AsyncIterable, Iterable, Iterator
from itertools import islice

from openai_cancel.errors import ConfigurationError
from openai_cancel.wire import ResponseId


def iterate(response_ids: Iterable[ResponseId]) -> Iterator[ResponseId]:
    """Return an iterator over ids. A line of a file is an id without its line break.

    Raises:
        ConfigurationError: it is no iterable of ids.
    """
    if isinstance(response_ids, str | bytes) or not isinstance(response_ids, Iterable):
        raise ConfigurationError(
            f"track_many takes an iterable of ids, such as a list, not {type(response_ids).__name__}."
        )
    return map(_stripped, response_ids)


async def batches(
    response_ids: Iterable[ResponseId] | AsyncIterable[ResponseId], size: int
) -> AsyncGenerator[list[ResponseId], None]:
    """Yield the ids of an iterable in lists of some size.

    Raises:
        ConfigurationError: it is no iterable of ids.
    """
    if not isinstance(response_ids, AsyncIterable):
        ids = iterate(response_ids)
        while found := [*islice(ids, size)]:
            yield found
        return
    batch: list[ResponseId] = []
    async for response_id in response_ids:
        batch.append(_stripped(response_id))
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch


def _stripped(response_id: ResponseId) -> ResponseId:
    return response_id.rstrip("\r\n") if isinstance(response_id, str) else response_id
