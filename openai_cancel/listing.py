"""`running`: the responses on a server's list, page by page.

The lists that exist:
https://learn.microsoft.com/azure/foundry/reference/rest/list-responses,
https://docs.fireworks.ai/api-reference/list-responses and ogx's `GET /v1/responses`. All take `limit`, up to 100, and
`after`, an id; most take `order`, and ogx takes `model`.
"""

import time
from collections.abc import AsyncGenerator, Iterable, Mapping, Sequence
from contextlib import aclosing, suppress
from http import HTTPStatus
from itertools import pairwise
from typing import Self

import attrs

from openai_cancel.caller import Caller
from openai_cancel.checks import check_seconds
from openai_cancel.errors import (
    APIStatusError,
    AuthenticationError,
    ConfigurationError,
    ListingError,
    PermissionDeniedError,
    RateLimitError,
    ResponseDecodeError,
    UnsupportedError,
)
from openai_cancel.models import Response
from openai_cancel.models.response import record_call
from openai_cancel.rate_limiter import RateLimiter
from openai_cancel.wire import Page

PAGE_SIZE = 100
"""The number of responses of a page, the largest that servers accept."""

MAX_PAGES = 100_000
"""The number of pages after which a list is taken for endless."""

LIST_SKEW = 5.0
"""Seconds by which a response may appear on a list later than one that was created after it."""

CURSORS = 3
"""The number of responses that are tried as the place to continue from, if the server has deleted the others."""


@attrs.frozen(kw_only=True)
class Filters:
    """The conditions that a response must fulfil, all of them. None is no condition.

    Attributes:
        statuses: its status is one of these.
        older_than: it was created more than so many seconds ago.
        newer_than: it was created less than so many seconds ago.
        model: its model.
        metadata: keys and values that its metadata contains.
    """

    statuses: frozenset[str]
    older_than: float | None
    newer_than: float | None
    model: str | None
    metadata: Mapping[str, str]

    @classmethod
    def checked(
        cls,
        *,
        statuses: Iterable[str],
        older_than: float | None,
        newer_than: float | None,
        model: str | None,
        metadata: Mapping[str, str] | None,
    ) -> Self:
        """Return filters of arguments.

        Raises:
            ConfigurationError: an argument cannot work.
        """
        if isinstance(statuses, str) or not isinstance(statuses, Iterable):
            raise ConfigurationError(f"statuses must be a collection such as ['queued'], not {statuses!r}.")
        names = [*statuses]
        if not names or not all(isinstance(name, str) for name in names):
            raise ConfigurationError("statuses must contain at least one status, and nothing but strings.")
        if older_than is not None:
            check_seconds("older_than", older_than)
        if newer_than is not None:
            check_seconds("newer_than", newer_than)
        if older_than is not None and newer_than is not None and older_than >= newer_than:
            raise ConfigurationError("older_than must be less than newer_than: otherwise no response can match both.")
        if not isinstance(model, str | None):
            raise ConfigurationError(f"model must be the name of a model, not {type(model).__name__}.")
        metadata = {} if metadata is None else metadata
        if not isinstance(metadata, Mapping) or not all(isinstance(x, str) for pair in metadata.items() for x in pair):
            raise ConfigurationError("metadata must be a mapping of strings to strings.")
        return cls(
            statuses=frozenset(names),
            older_than=older_than,
            newer_than=newer_than,
            model=model,
            metadata=dict(metadata),
        )

    def match(self, response: Response) -> bool:
        """Return whether a response fulfils all conditions. One of unknown age is neither old nor new."""
        if response.status not in self.statuses or (self.model is not None and response.model != self.model):
            return False
        age = response.age
        if self.older_than is not None and (age is None or age <= self.older_than):
            return False
        if self.newer_than is not None and (age is None or age >= self.newer_than):
            return False
        metadata = response.metadata or {}
        return all(metadata.get(name) == value for name, value in self.metadata.items())


async def running(caller: Caller, filters: Filters, limit: int | None) -> AsyncGenerator[Response, None]:
    """Yield the responses on the server's list that match. For the arguments, see `AsyncSession.running`."""
    listing = _Listing(caller.with_limiter(RateLimiter(1, caller.clock)), filters)
    left = limit
    async with aclosing(listing.run()) as responses:
        async for response in responses:
            if filters.match(response):
                yield response
                left = None if left is None else left - 1
                if left == 0:
                    return


@attrs.define
class _Newest:
    """The newest responses that were seen, by which a second look at the list knows where the first one began.

    Attributes:
        since: the earliest time of creation of those that are known by their ids.
        ids: their ids.
    """

    since: float | None = None
    ids: set[str] = attrs.field(factory=set[str])

    def note(self, response: Response) -> None:
        """Note a response, if it is one of the newest. The first that is noted is the newest."""
        created, name = response.created_at, response.id
        if created is None or name is None:
            return
        if self.since is None:
            self.since = created - LIST_SKEW
        if created >= self.since:
            self.ids.add(name)


class _Listing:
    """One iteration over a list, the newest responses first, then those that were created meanwhile.

    Memory does not grow with the length of the list: of all that was seen, it only knows the ids of the last page and
    of the last seconds.
    """

    def __init__(self, caller: Caller, filters: Filters) -> None:
        self._caller = caller
        self._oldest = None if filters.newer_than is None else filters.newer_than + LIST_SKEW
        self._size = PAGE_SIZE
        self._model = filters.model
        self._descends = True  # so far; some servers ignore `order`
        self._pages_read = 0
        self._gap = False  # whether the server may have left out responses

    async def run(self) -> AsyncGenerator[Response, None]:
        """Yield the responses on the list, each once."""
        newest = _Newest()
        async with aclosing(self._pages()) as pages:
            async for responses in pages:
                for response in responses:
                    newest.note(response)
                    yield response
                if self._is_past(responses):
                    break
        if self._pages_read > 1 and self._descends and newest.since is not None:
            async with aclosing(self._created_since(newest)) as more:
                async for response in more:
                    yield response
        if self._gap:
            raise ListingError(
                f"The server's list does not show more than {PAGE_SIZE} responses that were created in the same "
                "second: there may be more than were found. Repeat the call with other filters, such as a model."
            )

    async def _created_since(self, newest: _Newest) -> AsyncGenerator[Response, None]:
        """Yield the responses that were created since the first page was read."""
        async with aclosing(self._pages()) as pages:
            async for responses in pages:
                for response in responses:
                    created = response.created_at
                    if created is None or newest.since is None or created < newest.since:
                        return
                    if response.id not in newest.ids:
                        yield response

    def _is_past(self, responses: Sequence[Response]) -> bool:
        """Return whether all further responses are too old."""
        age = responses[-1].age if responses and self._descends else None
        return age is not None and self._oldest is not None and age > self._oldest

    async def _pages(self) -> AsyncGenerator[Sequence[Response], None]:
        """Yield the new responses of each page."""
        cursors: Sequence[_Cursor] = (_Cursor(),)
        mark, period, count = "", 1, 0
        while True:
            cursor, page = await self._read(cursors)
            count += 1
            responses = [response for response in page.responses if response.id not in cursor.seen]
            if cursor.after and any(response.id == cursor.after for response in page.responses):
                raise _repeats()
            yield responses
            if page.has_more is False or (not page.responses and page.has_more is None):
                return
            if not page.responses:
                raise ListingError("The server's list is inconsistent: it reports more responses, but a page is empty.")
            cursors = await self._next(page.responses, is_stuck=not responses)
            if cursors[0].after == mark:
                raise _repeats()
            if count == period:  # any cycle is found, with one id to remember: Brent's algorithm
                mark, period = cursors[0].after, period * 2
            if count >= MAX_PAGES:
                raise ListingError(f"The server's list has not ended after {count:,} pages.")

    async def _read(self, cursors: "Sequence[_Cursor]", size: int | None = None) -> "tuple[_Cursor, Page]":
        """Read the page after the first cursor that the server knows."""
        *others, last = cursors
        for cursor in others:
            with suppress(_LostError):
                return cursor, await self._read_after(cursor, size)
        try:
            return last, await self._read_after(last, size)
        except _LostError as error:
            raise ListingError(f"The server's list has lost its place: {error.__cause__}") from error.__cause__

    async def _read_after(self, cursor: "_Cursor", size: int | None) -> Page:
        try:
            return await self._request(cursor.after, size)
        except APIStatusError as error:
            if cursor.after and _is_about_cursor(error):
                raise _LostError from error
            raise

    async def _request(self, after: str, size: int | None) -> Page:
        """Read a page, in a form that the server accepts."""
        while True:
            parameters = {"limit": str(size or self._size), "order": "desc"}
            if after:
                parameters["after"] = after
            if self._model is not None:
                parameters["model"] = self._model
            try:
                page = await self._caller.list_page(parameters)
            except ResponseDecodeError as error:
                if error.body or self._size == 1:
                    raise
                self._size //= 2  # the body was larger than the session's limit
            except APIStatusError as error:
                if error.status not in _REFUSALS or self._model is None:
                    raise
                self._model = None  # the server may not know this parameter
            else:
                self._pages_read += 1
                _record_age(page)
                self._descends = self._descends and _is_sorted([one.created_at for one in page.responses], 1)
                return page

    async def _next(self, responses: Sequence[Response], *, is_stuck: bool) -> "Sequence[_Cursor]":
        """Return the places to continue from, the best one first.

        Some servers continue after the time of the cursor and leave out what was created in the same second, and others
        are shown at another place than before. So a page begins with the last second of the page before.
        """
        times = [response.created_at for response in responses]
        last = _Cursor(str(responses[-1].id))
        if is_stuck or not (_is_sorted(times, 1) or _is_sorted(times, -1)):
            return (last,)
        earlier = [place for place, created in enumerate(times) if created != times[-1]]
        if earlier:
            places = earlier[-1 : -1 - CURSORS : -1]
            return [_Cursor(str(responses[at].id), {str(one.id) for one in responses[at + 1 :]}) for at in places]
        await self._check_gap(responses)
        return (last,)

    async def _check_gap(self, responses: Sequence[Response]) -> None:
        """Note whether the server leaves out responses of the same second, if a whole page is of one second."""
        if len(responses) > 1 and not self._gap:
            _, page = await self._read((_Cursor(str(responses[0].id)),), 1)
            self._gap = [one.created_at for one in page.responses[:1]] != [responses[0].created_at]


@attrs.frozen
class _Cursor:
    """A place in a list.

    Attributes:
        after: the id of the response before it; empty for the beginning of the list.
        seen: the ids of responses after it that were seen already.
    """

    after: str = ""
    seen: set[str] = attrs.field(factory=set[str])


class _LostError(Exception):
    """The server does not know the cursor."""


_REFUSALS = frozenset({HTTPStatus.BAD_REQUEST, HTTPStatus.UNPROCESSABLE_ENTITY})


def _is_about_cursor(error: APIStatusError) -> bool:
    """Return whether a server may refuse a page since it does not know the cursor."""
    others = isinstance(error, AuthenticationError | PermissionDeniedError | RateLimitError)
    return isinstance(error, UnsupportedError) or (error.status < HTTPStatus.INTERNAL_SERVER_ERROR and not others)


def _repeats() -> ListingError:
    return ListingError("The server's list repeats pages, so that its end cannot be reached.")


def _record_age(page: Page) -> None:
    now = time.time() if page.date is None else page.date
    for response in page.responses:
        if response.created_at is not None:
            record_call(response, age=max(now - response.created_at, 0.0))


def _is_sorted(times: Sequence[float | None], step: int) -> bool:
    """Return whether times are known and do not increase (step 1), or do not decrease (step -1)."""
    known = [created for created in times if created is not None][::step]
    return len(known) == len(times) and all(before >= after for before, after in pairwise(known))
