"""`running`: each response that runs, once, from lists as servers have them and from lists that are broken."""

import asyncio
import gc
import math
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

import attrs
import openai
import pytest
from conftest import KEY, QuickSession, emulated

from openai_cancel import (
    APIConnectionError,
    AsyncSession,
    AuthenticationError,
    ConfigurationError,
    InternalServerError,
    ListingError,
    Response,
    ResponseDecodeError,
    Session,
    SessionStateError,
    UnsupportedError,
    listing,
)
from openai_cancel.emulator import DIALECTS, Emulator, Fault, List, Script

FOREVER = Script(runs_for=math.inf)


async def put_ids(found: list[str], responses: AsyncIterator[Response]) -> None:
    """Append the ids to a list, which has them also if the iteration fails."""
    async for response in responses:
        found.append(response.id)  # noqa: PERF401 - a comprehension would lose them


async def ids(responses: AsyncIterator[Response]) -> list[str]:
    async with aclosing(responses):
        return [response.id async for response in responses]


def tick(server: Emulator, seconds: float = 1.0) -> None:
    """Move the emulator's clock."""
    server.clock.__self__.now += seconds


def paths(server: Emulator) -> list[str]:
    return [request.path for request in server.received]


def shown(*items: Any, more: bool | None = None, **headers: str) -> Fault:
    """A page with responses, each an id or an id and a time of creation."""
    data = []
    for item in items:
        name, created = item if isinstance(item, tuple) else (item, 1_700_000_000)
        data.append({"id": name, "status": "queued", "created_at": created})
    body = {"object": "list", "data": data, **({} if more is None else {"has_more": more})}
    return Fault(on="list", status=200, body=body, headers=headers)


@pytest.fixture
async def ogx() -> AsyncIterator[tuple[Emulator, QuickSession]]:
    async with emulated("ogx") as (server, session):
        server.script = FOREVER
        yield server, session


class TestFilters:
    async def test_it_yields_what_is_queued_or_in_progress_the_newest_first(self, ogx) -> None:
        server, session = ogx
        server.add(Script(runs_for=0))
        running = server.add()
        tick(server)
        queued = server.add(Script(queued_for=9))
        found = [response async for response in session.running()]
        assert [(response.id, response.status, response.age) for response in found] == [
            (queued, "queued", 0.0),
            (running, "in_progress", 1.0),
        ]
        assert paths(server) == ["/v1/responses?limit=100&order=desc"]

    async def test_statuses_are_chosen_by_the_caller(self, ogx) -> None:
        server, session = ogx
        over, running = server.add(Script(runs_for=0)), server.add()
        assert await ids(session.running(statuses=["completed"])) == [over]
        assert sorted(await ids(session.running(statuses={"completed", "in_progress"}))) == sorted([over, running])

    async def test_ages_are_compared_by_the_clock_of_the_server(self, ogx) -> None:
        server, session = ogx
        names = []
        for _ in range(3):
            names.append(server.add())
            tick(server, 10)
        assert await ids(session.running(older_than=15)) == [names[1], names[0]]
        assert await ids(session.running(newer_than=15)) == [names[2]]
        assert await ids(session.running(older_than=15, newer_than=25)) == [names[1]]
        assert await ids(session.running(older_than=20)) == [names[0]]

    async def test_a_response_of_unknown_age_is_neither_old_nor_new(self, ogx) -> None:
        server, session = ogx
        server.faults = [
            Fault(on="list", status=200, body={"data": [{"id": "a", "status": "queued"}], "has_more": False})
        ] * 9
        assert await ids(session.running(older_than=0.1)) == await ids(session.running(newer_than=9e9)) == []

    async def test_the_clock_of_this_machine_counts_if_the_server_does_not_tell_the_time(self, ogx) -> None:
        server, session = ogx
        server.faults = [shown(("a", 0), more=False, date="never")]
        (found,) = [response async for response in session.running()]
        assert found.age > 1_700_000_000
        assert (await session.retrieve(server.add())).age is None

    async def test_model_and_metadata_are_compared_here_if_the_server_does_not_filter(self) -> None:
        async with (
            emulated("azure") as (server, session),
            openai.AsyncOpenAI(api_key=KEY, base_url=server.base_url) as official,
        ):
            made = {}
            for model in ("small", "large"):
                for team in ("red", "blue"):
                    metadata = {"team": team, "runs_for": "99"}
                    created = await official.responses.create(model=model, input="", background=True, metadata=metadata)
                    made[model, team] = created.id
            assert sorted(await ids(session.running(model="small"))) == sorted(
                [made["small", "red"], made["small", "blue"]]
            )
            assert await ids(session.running(model="large", metadata={"team": "red"})) == [made["large", "red"]]
            assert await ids(session.running(metadata={"team": "green"})) == []

    async def test_a_server_that_refuses_the_parameter_model_is_asked_without_it(self, ogx) -> None:
        server, session = ogx
        name = server.add()
        server.faults = [Fault(on="list", status=422, body={"detail": "extra parameter"})]
        assert await ids(session.running(model="emulated")) == [name]
        assert [("model" in path) for path in paths(server)] == [True, False]

    async def test_a_limit_ends_the_iteration_without_another_page(self, ogx) -> None:
        server, session = ogx
        for _ in range(150):
            server.add()
            tick(server)
        assert len(await ids(session.running(limit=100))) == 100
        assert len(server.received) == 1
        assert len(await ids(session.running(limit=101))) == 101

    async def test_only_the_new_part_of_a_long_list_is_read(self, ogx) -> None:
        server, session = ogx
        for _ in range(250):
            server.add()
            tick(server)
        assert len(await ids(session.running(newer_than=51))) == 50
        assert len(server.received) == 1

    @pytest.mark.parametrize(
        ("options", "words"),
        [
            ({"statuses": "queued"}, "statuses must be a collection such as"),
            ({"statuses": 5}, "statuses must be a collection such as"),
            ({"statuses": [["queued"]]}, "nothing but strings"),
            ({"statuses": []}, "at least one status"),
            ({"statuses": [1]}, "nothing but strings"),
            ({"older_than": 0}, "older_than must be a number of seconds"),
            ({"newer_than": "1h"}, "newer_than must be a number of seconds"),
            ({"older_than": 5, "newer_than": 5}, "older_than must be less than newer_than"),
            ({"model": 5}, "model must be the name of a model, not int"),
            ({"metadata": ["a"]}, "metadata must be a mapping of strings to strings"),
            ({"metadata": {"a": 1}}, "metadata must be a mapping of strings to strings"),
            ({"limit": 0}, "limit must be a whole number of at least 1"),
            ({"timeout": 0}, "timeout must be a number of seconds"),
        ],
    )
    def test_options_that_cannot_work_are_refused_at_once(self, options: dict, words: str) -> None:
        for session in (AsyncSession(api_key=KEY), Session(api_key=KEY)):
            with pytest.raises(ConfigurationError, match=words):
                session.running(**options)


class TestPages:
    @pytest.mark.parametrize("dialect", ["ogx", "azure"])
    @pytest.mark.parametrize("pause", [0.0, 0.004, 0.3, 2.0])
    async def test_each_response_comes_once_however_many_were_created_in_a_second(
        self, dialect: str, pause: float
    ) -> None:
        async with emulated(dialect) as (server, session):
            server.script = FOREVER
            names = []
            for _ in range(230):
                names.append(server.add())
                tick(server, pause)
            assert Counter(await ids(session.running())) == Counter(names)

    async def test_what_is_created_or_ends_meanwhile_is_neither_missed_nor_yielded_twice(self, ogx) -> None:
        server, session = ogx
        names, late, ended = [], [], []
        for _ in range(230):
            names.append(server.add())
            tick(server, 0.3)
        found = []
        async for response in session.running():
            found.append(response.id)
            if len(found) % 20 == 0 and len(found) <= 180:  # the last page has not been read
                late += [server.add(), server.add()]
                tick(server, 0.3)
                for name in names[:3]:  # the oldest, which were not read yet
                    server.responses[name].cancel(server.clock())
                    ended.append(names.pop(0))
        assert len(late) > 10
        assert Counter(found) == Counter([*names, *late])

    async def test_what_is_listed_late_is_not_missed(self, ogx) -> None:
        server, session = ogx
        for _ in range(150):
            server.add()
            tick(server)
        found, late = [], None
        async for response in session.running():
            found.append(response.id)
            if late is None:  # created before what was read already
                late = server.add()
                server.responses[late] = attrs.evolve(server.responses[late], started=server.clock() - 3)
        assert late in found
        assert len(found) == len(set(found)) == 151

    async def test_a_server_that_continues_after_the_second_of_the_cursor_is_read_completely(self, ogx) -> None:
        """As llama-stack did: what is created in the second of the cursor, and not on the page, is left out."""
        server, session = ogx
        items = [(f"r{place:03}", 1_700_000_000 - place // 60) for place in range(300)]
        self.answer_like_llama_stack(server, items)
        assert await ids(session.running()) == [name for name, _ in items]

    async def test_more_than_a_page_of_one_second_is_a_gap_if_the_server_continues_after_it(self, ogx) -> None:
        server, session = ogx
        items = [(f"r{place:03}", 1_700_000_000 - (place >= 120)) for place in range(200)]
        self.answer_like_llama_stack(server, items)
        found = []
        with pytest.raises(ListingError, match="does not show more than 100 responses that were created in the same"):
            await put_ids(found, session.running())
        assert found == [name for name, _ in items[:100] + items[120:]]

    @staticmethod
    def answer_like_llama_stack(server: Emulator, items: list[tuple[str, int]]) -> None:
        class Answer(Fault):
            async def strike(self, request: Any, handler: Any) -> Any:
                server.faults.append(self)
                limit, after = int(request.query["limit"]), request.query.get("after")
                created = dict(items)
                rest = [item for item in items if after is None or item[1] < created[after]]
                fault = shown(*rest[:limit], more=len(rest) > limit)
                return await fault.strike(request, handler)

        server.faults = [Answer(on="list")]

    async def test_a_list_that_starts_with_the_oldest_is_read_to_its_end(self, ogx) -> None:
        server, session = ogx
        server.faults = [
            shown(("a", 1), ("b", 2), ("c", 3), more=True),
            shown(("c", 3), ("d", 4), more=True),
            shown(("d", 4), more=True),
            shown(("e", 5), more=False),
        ]
        assert await ids(session.running(newer_than=1e10)) == ["a", "b", "c", "d", "e"]
        assert [path.partition("&after=")[2] for path in paths(server)] == ["", "b", "c", "d"]

    async def test_a_list_without_an_order_is_read_to_its_end(self, ogx) -> None:
        server, session = ogx
        server.faults = [shown(("a", 1), ("b", 9), ("c", 3), more=True), shown(("d", 2), more=False)]
        assert await ids(session.running()) == ["a", "b", "c", "d"]
        assert paths(server)[1].endswith("after=c")

    async def test_a_list_that_does_not_say_whether_there_is_more_ends_with_an_empty_page(self, ogx) -> None:
        server, session = ogx
        server.faults = [shown(("b", 90), ("a", 80)), shown(("a", 80)), shown(), shown(("b", 90), ("a", 80))]
        assert await ids(session.running()) == ["b", "a"]

    async def test_pages_that_are_too_large_are_asked_for_in_halves(self) -> None:
        async with emulated("ogx", max_body_bytes=20_000) as (server, session):
            server.script = FOREVER
            for _ in range(60):
                server.add()
                tick(server)
            assert len(await ids(session.running())) == 60
        assert "limit=50" in paths(server)[1]

    async def test_a_single_response_that_is_too_large_is_an_error(self) -> None:
        async with emulated("ogx", max_body_bytes=100) as (server, session):
            server.add()
            with pytest.raises(ResponseDecodeError, match="larger than the limit"):
                await ids(session.running())
        assert len(server.received) == 7

    async def test_a_cursor_that_was_deleted_is_replaced_by_another(self, ogx) -> None:
        server, session = ogx
        names = []
        for _ in range(150):
            names.append(server.add())
            tick(server)
        found = []
        async for response in session.running():
            found.append(response.id)
            if len(found) == 100:
                del server.responses[names[51]]
                del server.responses[names[52]]
        assert len(found) == len(set(found)) == 150

    @pytest.mark.slow
    async def test_memory_does_not_grow_with_the_list(self, ogx) -> None:
        server, session = ogx
        for _ in range(400):
            server.add()
            tick(server)
        most, count = 0, 0
        async for _ in session.running():
            count += 1
            if count % 50 == 0:
                most = max(most, sum(isinstance(thing, Response) for thing in gc.get_objects()))
        assert count == 400
        assert most <= 300


class TestBrokenLists:
    async def test_a_server_that_ignores_the_cursor_repeats_pages(self, ogx) -> None:
        server, session = ogx
        server.faults = [shown(("c", 3), ("b", 2), ("a", 1), more=True)] * 9
        with pytest.raises(ListingError, match="repeats pages"):
            await ids(session.running())
        assert len(server.received) == 2

    async def test_a_page_without_anything_new_is_a_repetition(self, ogx) -> None:
        server, session = ogx
        server.faults = [shown(("b", 2), ("a", 1), more=True), *[shown(("a", 1), more=True)] * 9]
        with pytest.raises(ListingError, match="repeats pages"):
            await ids(session.running())

    async def test_pages_that_go_round_in_a_circle_are_a_repetition(self, ogx) -> None:
        server, session = ogx
        circle = [shown((f"{page}x", 2), (f"{page}y", 3), (f"{page}z", 2), more=True) for page in "abcde"]
        server.faults = circle * 9
        with pytest.raises(ListingError, match="repeats pages"):
            await ids(session.running())
        assert len(server.received) < 20

    async def test_a_promise_of_more_that_is_not_kept_is_a_lost_place(self, ogx) -> None:
        server, session = ogx
        server.faults = [shown("a", more=True), shown(more=True)]
        found = []
        with pytest.raises(ListingError, match="is inconsistent: it reports more responses, but a page is empty"):
            await put_ids(found, session.running())
        assert found == ["a"]

    @pytest.mark.parametrize("status", [400, 404, 410, 422])
    async def test_a_cursor_that_the_server_does_not_know_is_a_lost_place(self, ogx, status: int) -> None:
        server, session = ogx
        refusals = [Fault(on="list", status=status, body={"detail": "no such id"})] * 9
        server.faults = [shown(*((f"r{place}", place) for place in range(9, 0, -1)), more=True), *refusals]
        with pytest.raises(ListingError, match=f"lost its place: {status}: no such id"):
            await ids(session.running())
        assert [path.partition("&after=")[2] for path in paths(server)] == ["", "r2", "r3", "r4"]

    @pytest.mark.parametrize(("status", "kind"), [(401, AuthenticationError), (500, InternalServerError)])
    async def test_other_errors_of_a_later_page_are_raised_as_they_are(self, ogx, status: int, kind: type) -> None:
        server, session = ogx
        server.faults = [shown(("b", 2), ("a", 1), more=True), *[Fault(on="list", status=status)] * 9]
        with pytest.raises(kind):
            await ids(session.running())

    async def test_a_list_without_an_end_is_given_up(self, ogx, monkeypatch: pytest.MonkeyPatch) -> None:
        server, session = ogx
        monkeypatch.setattr(listing, "MAX_PAGES", 5)
        server.faults = [shown((f"r{page}", 99 - page), (f"s{page}", 98 - page), more=True) for page in range(9)]
        with pytest.raises(ListingError, match="has not ended after 5 pages"):
            await ids(session.running())

    @pytest.mark.parametrize(
        "body",
        [
            b"<html>",
            b"[]",
            {"data": {}},
            {"data": [1]},
            {"data": [{"status": "queued"}]},
            {"id": "a", "status": "queued"},
        ],
    )
    async def test_a_body_that_is_no_list_is_an_error(self, ogx, body: object) -> None:
        server, session = ogx
        server.faults = [Fault(on="list", status=200, body=body)]
        with pytest.raises(ResponseDecodeError, match="The body is not a list of responses with ids"):
            await ids(session.running())

    async def test_json_that_only_python_reads_is_a_list_too(self, ogx) -> None:
        server, session = ogx
        server.faults = [Fault(on="list", status=200, body=b'{"data": [{"id": "a", "status": "queued", "x": NaN}]}')]
        assert await ids(session.running(limit=1)) == ["a"]


class TestServersWithoutAList:
    @pytest.mark.parametrize("dialect", ["openai", "vllm", "no_cancel_route", "smg_openai"])
    async def test_the_error_says_what_else_to_do(self, dialect: str) -> None:
        async with emulated(dialect) as (server, session):
            with pytest.raises(UnsupportedError) as caught:
                await ids(session.running())
        assert "This server has no list of responses" in str(caught.value)
        assert "`AsyncSession.watch`" in str(caught.value)
        assert "`openai-cancel ledger`" in str(caught.value)
        assert len(server.received) == 1

    @pytest.mark.parametrize("status", [401, 403])
    async def test_a_list_for_browsers_is_none(self, ogx, status: int) -> None:
        server, session = ogx
        words = "Your request must be made with a session key (that is, it can only be made from the browser)."
        server.faults = [Fault(on="list", status=status, body={"error": {"message": words}})]
        with pytest.raises(UnsupportedError, match="must be made with a session key"):
            await ids(session.running())

    async def test_a_wrong_key_is_no_missing_list(self) -> None:
        async with emulated("ogx", key="sk-another-key") as (_, session):
            with pytest.raises(AuthenticationError):
                await ids(session.running())


class TestRequests:
    async def test_a_page_is_asked_for_again_after_an_error(self, ogx) -> None:
        server, session = ogx
        name = server.add()
        server.faults = [
            Fault(on="list", status=503),
            Fault(on="list", cut="connection"),
            Fault(on="list", status=429, headers={"retry-after": "7"}),
        ]
        assert await ids(session.running()) == [name]
        assert 7 in session.clock.slept
        assert len(server.received) == 4

    async def test_retries_headers_and_query_are_those_of_the_call(self, ogx) -> None:
        server, session = ogx
        server.faults = [Fault(on="list", cut="connection")] * 9
        with pytest.raises(APIConnectionError):
            await ids(session.running(max_retries=0, headers={"x-a": "1"}, query={"agent_name": "a", "limit": "7"}))
        request = server.received[0]
        assert request.path == "/v1/responses?agent_name=a&limit=100&order=desc"
        assert request.headers["x-a"] == "1"

    async def test_a_session_that_is_not_open_lists_nothing(self) -> None:
        with pytest.raises(SessionStateError):
            await ids(AsyncSession(api_key=KEY).running())

    async def test_it_yields_what_the_official_client_gets(self, ogx) -> None:
        server, session = ogx
        for _ in range(5):
            server.add()
            tick(server)
        async with openai.AsyncOpenAI(api_key=KEY, base_url=server.base_url) as official:
            raw = await official.get("/responses", cast_to=object)
        assert [response.to_dict() async for response in session.running()] == raw["data"]

    async def test_requests_are_logged(self, ogx, caplog: pytest.LogCaptureFixture) -> None:
        server, session = ogx
        server.add()
        server.faults = [Fault(on="list", status=503)]
        with caplog.at_level("DEBUG", "openai_cancel"):
            await ids(session.running())
        assert [
            record.getMessage().partition(" (")[0] for record in caplog.records if "attempt" in record.getMessage()
        ] == [
            "list responses: attempt 1: InternalServerError 503",
            "list responses: attempt 2: 1 responses",
        ]

    @pytest.mark.usefixtures("no_task_is_left")
    async def test_a_cancelled_iteration_leaves_nothing_behind(self, ogx) -> None:
        server, session = ogx
        server.faults = [Fault(on="list", delay=math.inf)]
        task = asyncio.create_task(ids(session.running()))
        while not server.received:
            await asyncio.sleep(0.001)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task


class TestStopping:
    async def test_stop_many_takes_the_iterator(self, ogx) -> None:
        server, session = ogx
        for _ in range(120):
            server.add()
            tick(server, 0.2)
        outcomes = [outcome async for outcome in session.stop_many(session.running())]
        assert len(outcomes) == 120
        assert all(outcome.stopped for outcome in outcomes)
        assert {work.cancels for work in server.responses.values()} == {1}
        assert await ids(session.running()) == []

    async def test_a_blocking_session_lists_and_stops(self, ogx) -> None:
        server, _ = ogx
        for _ in range(3):
            server.add()

        def work() -> tuple[list[str], list[str]]:
            with Session(api_key=KEY, base_url=server.base_url) as session:
                found = [response.id for response in session.running(statuses=["in_progress"], limit=2)]
                return found, [outcome.verdict for outcome in session.stop_many(session.running())]

        found, verdicts = await asyncio.to_thread(work)
        assert len(found) == 2
        assert verdicts == ["cancelled"] * 3

    def test_a_dialect_with_a_small_page_is_listed(self) -> None:
        assert DIALECTS["ogx"].lists == List(
            default=50, takes_model=True, unknown_cursor="Record with id='{id}' not found in table 'responses'"
        )
