"""A session that closes while guards are open stops their responses first."""

import pytest
from conftest import until
from web_hosts import HOSTS, ask, host, left, needs

from openai_cancel.emulator import Emulator, Script

IN_FLIGHT = 5


@pytest.fixture
def paths(server: Emulator, request: pytest.FixtureRequest) -> list[str]:
    """The paths of requests for responses that run forever."""
    folder = "answers" if request.node.callspec.params["framework"] == "django" else "plain"
    return [f"/{folder}/{server.add()}" for _ in range(IN_FLIGHT)]


class TestServersThatAreTerminated:
    """The emulator has the truth: it holds the responses."""

    @pytest.mark.timeout(120)
    @pytest.mark.parametrize("framework", [pytest.param(name, marks=needs(name)) for name in HOSTS])
    async def test_nothing_is_left_running_when_a_deploy_ends_the_requests_in_flight(
        self, server: Emulator, framework: str, paths: list[str]
    ) -> None:
        module, *arguments = HOSTS[framework]
        short = ["--port", "0", "--timeout-graceful-shutdown", "1"] if module == "uvicorn" else ["1"]
        async with host(server, module, *arguments, *short) as service:
            asking = await ask(service, paths, server)
            await service.terminated()
            assert left(server) == []
            assert "was not stopped" not in service.output
            for task in asking:
                await task
