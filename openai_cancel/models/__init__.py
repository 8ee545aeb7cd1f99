"""The classes of a response and of everything in it."""

# ruff: noqa: F403 - a name is listed once, in the `__all__` of its module, which type checkers and pdoc follow

from openai_cancel.models import (
    agents,
    calls,
    choices,
    computer,
    config,
    content,
    inputs,
    items,
    mcp,
    problems,
    response,
    shared,
    shell,
    tools,
    usage,
)
from openai_cancel.models.agents import *
from openai_cancel.models.calls import *
from openai_cancel.models.choices import *
from openai_cancel.models.computer import *
from openai_cancel.models.config import *
from openai_cancel.models.content import *
from openai_cancel.models.inputs import *
from openai_cancel.models.items import *
from openai_cancel.models.mcp import *
from openai_cancel.models.problems import *
from openai_cancel.models.response import *
from openai_cancel.models.shared import *
from openai_cancel.models.shell import *
from openai_cancel.models.tools import *
from openai_cancel.models.usage import *

__all__: list[str] = []
__all__ += agents.__all__
__all__ += calls.__all__
__all__ += choices.__all__
__all__ += computer.__all__
__all__ += config.__all__
__all__ += content.__all__
__all__ += inputs.__all__
__all__ += items.__all__
__all__ += mcp.__all__
__all__ += problems.__all__
__all__ += response.__all__
__all__ += shared.__all__
__all__ += shell.__all__
__all__ += tools.__all__
__all__ += usage.__all__
