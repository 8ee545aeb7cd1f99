"""A server of the Responses API that runs no model: for demonstrations, tests, and work without a network or a key."""

from openai_cancel.emulator.dialects import DIALECTS, Dialect, Failure, List, Reply
from openai_cancel.emulator.faults import Fault
from openai_cancel.emulator.server import Emulator, Received
from openai_cancel.emulator.work import Script, Work

__all__ = ["DIALECTS", "Dialect", "Emulator", "Failure", "Fault", "List", "Received", "Reply", "Script", "Work"]
