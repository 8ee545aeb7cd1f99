"""The emulator's list of responses, with the parameters and the answers of the servers that have one."""

import attrs
import openai
import pytest
from conftest import KEY, emulated

from openai_cancel.emulator import DIALECTS, Emulator, List, Script


def client(server: Emulator) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(api_key=KEY, base_url=server.base_url, max_retries=0)


async def page(server: Emulator, **query: object) -> dict:
    async with client(server) as official:
        return await official.get("/responses", cast_to=object, options={"params": query})


async def refusal(server: Emulator, **query: object) -> tuple[int, object]:
    with pytest.raises(openai.APIStatusError) as caught:
        await page(server, **query)
    return caught.value.status_code, caught.value.response.json()


class TestPages:
    async def test_a_list_has_the_envelope_of_ogx(self) -> None:
        async with emulated("ogx") as (server, _):
            assert await page(server) == {
                "data": [],
                "has_more": False,
                "first_id": "",
                "last_id": "",
                "object": "list",
            }
            first, second = server.add(), None
            server.clock.__self__.now += 1
            second = server.add(Script(runs_for=0))
            shown = await page(server)
        assert [item["id"] for item in shown["data"]] == [second, first]
        assert [item["status"] for item in shown["data"]] == ["completed", "in_progress"]
        assert (shown["first_id"], shown["last_id"], shown["has_more"]) == (second, first, False)

    @pytest.mark.parametrize(("dialect", "default"), [("ogx", 50), ("azure", 20)])
    @pytest.mark.parametrize("order", ["asc", "desc"])
    async def test_pages_follow_each_other(self, dialect: str, default: int, order: str) -> None:
        async with emulated(dialect) as (server, _):
            ids = []
            for _ in range(default + 1):
                server.clock.__self__.now += 0.4  # two or three in each second
                ids.append(server.add())
            assert len((await page(server))["data"]) == default
            found, after = [], {}
            while True:
                shown = await page(server, limit=19, order=order, **after)
                found += [item["id"] for item in shown["data"]]
                if not shown["has_more"]:
                    break
                after = {"after": shown["last_id"]}
        assert sorted(found) == sorted(ids)
        seconds = [int(server.responses[name].started) for name in found]
        assert seconds == sorted(seconds, reverse=order == "desc")

    async def test_ogx_filters_by_model_and_azure_ignores_the_parameter(self) -> None:
        for dialect, count in (("ogx", 0), ("azure", 1)):
            async with emulated(dialect) as (server, _):
                server.add()
                assert len((await page(server, model="other"))["data"]) == count
                assert len((await page(server, model="emulated"))["data"]) == 1

    async def test_a_response_that_a_request_would_not_find_is_not_listed(self) -> None:
        async with emulated("azure") as (server, _):
            server.store_delay = 5
            server.add()
            assert (await page(server))["data"] == []
            server.clock.__self__.now += 5
            assert len((await page(server))["data"]) == 1
            server.responses.clear()


class TestRefusals:
    @pytest.mark.parametrize(
        ("query", "words"),
        [
            ({"limit": 0}, "limit: Input should be a whole number from 1 to 100"),
            ({"limit": 101}, "limit: Input should be a whole number from 1 to 100"),
            ({"limit": "x"}, "limit: Input should be a whole number from 1 to 100"),
            ({"order": "up"}, "order: Input should be 'asc' or 'desc'"),
            ({"after": "resp_none"}, "Record with id='resp_none' not found in table 'responses'"),
        ],
    )
    async def test_ogx_refuses_parameters(self, query: dict, words: str) -> None:
        async with emulated("ogx") as (server, _):
            assert await refusal(server, **query) == (400, {"detail": words})

    @pytest.mark.parametrize(
        ("dialect", "status"), [("openai", 405), ("vllm", 405), ("no_cancel_route", 404), ("litellm", 405)]
    )
    async def test_other_servers_have_no_list(self, dialect: str, status: int) -> None:
        async with emulated(dialect) as (server, _):
            assert (await refusal(server))[0] == status

    async def test_a_dialect_of_ones_own_can_list(self) -> None:
        async with emulated(attrs.evolve(DIALECTS["openai"], lists=List(default=1, largest=2))) as (server, _):
            server.add()
            server.add()
            assert len((await page(server))["data"]) == 1
            assert (await refusal(server, limit=3))[0] == 400
