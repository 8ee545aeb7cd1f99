"""Responses of the multi-agent beta: the header and the query that ask for it, and the items of several agents."""

from typing import Any

import pytest

from openai_cancel import AsyncSession
from openai_cancel.emulator import Emulator, Fault
from openai_cancel.models import (
    Agent,
    AgentMessage,
    AgentText,
    EncryptedContent,
    Message,
    MultiAgentCall,
    MultiAgentCallOutput,
    OutputText,
)

AGENT = {"agent_name": "/root"}
DOCUMENT: dict[str, Any] = {
    "id": "resp_1",
    "status": "cancelled",
    "output": [
        {
            "type": "multi_agent_call",
            "id": "mac_1",
            "call_id": "call_1",
            "action": "spawn_agent",
            "arguments": "{}",
            "agent": AGENT,
        },
        {
            "type": "multi_agent_call_output",
            "id": "maco_1",
            "call_id": "call_1",
            "action": "spawn_agent",
            "output": [{"type": "output_text", "text": "Spawned.", "annotations": []}],
            "agent": AGENT,
        },
        {
            "type": "agent_message",
            "id": "amsg_1",
            "author": "/root",
            "recipient": "/root/reader",
            "content": [
                {"type": "text", "text": "Read it."},
                {"type": "encrypted_content", "encrypted_content": "gAAAA"},
            ],
            "agent": AGENT,
        },
        {"type": "message", "id": "msg_1", "role": "assistant", "content": [], "agent": {"agent_name": "/root/reader"}},
    ],
}


@pytest.mark.parametrize("call", ["cancel", "retrieve"])
async def test_the_items_of_several_agents_are_typed(server: Emulator, session: AsyncSession, call: str) -> None:
    server.faults.append(Fault(status=200, body=DOCUMENT))
    response = await getattr(session, call)("resp_1")
    spawn, spawned, said, message = response.output
    assert isinstance(spawn, MultiAgentCall)
    assert (spawn.action, spawn.arguments, spawn.agent) == ("spawn_agent", "{}", Agent(agent_name="/root"))
    assert isinstance(spawned, MultiAgentCallOutput)
    assert isinstance(spawned.output[0], OutputText)
    assert isinstance(said, AgentMessage)
    assert (said.author, said.recipient) == ("/root", "/root/reader")
    assert [type(part) for part in said.content] == [AgentText, EncryptedContent]
    assert isinstance(message, Message)
    assert message.agent.agent_name == "/root/reader"
    assert response.problems == ()
    assert response.to_dict() == DOCUMENT


@pytest.mark.parametrize("call", ["cancel", "retrieve", "stop"])
async def test_the_header_and_the_query_of_the_beta_are_sent(
    server: Emulator, session: AsyncSession, create: Any, call: str
) -> None:
    await getattr(session, call)(create(), headers={"OpenAI-Beta": "responses_multi_agent=v1"}, query={"beta": "true"})
    for request in server.received:
        assert request.headers["openai-beta"] == "responses_multi_agent=v1"
        assert request.path.endswith("?beta=true")
