"""The classes of a response and of everything in it.

There is a class for every kind of object that a `Response` can contain, so it is typed to the last field.

```python
from openai_cancel import Session
from openai_cancel.models import FunctionCall, Message, OutputText

with Session() as session:
    response = session.cancel("resp_123")

print(response.status, response.is_terminal, response.created, response.output_text, response.usage)
for item in response.output or ():
    match item:
        case Message(content=[OutputText(text=text), *_]):
            print("said", text)
        case FunctionCall(name=name, arguments=arguments):
            print("called", name, arguments)
print(response.items(FunctionCall), response.problems, response.extra)
print(response.to_dict())  # exactly the server's document: store this, and not the output of `attrs.asdict`
```

FastAPI, pydantic, `cattrs.unstructure` and `json.dumps(default=vars)` serialize a response, or an `Outcome`, as this
document. msgspec, and Litestar, which is built on it, refuse them unless they are told how:
`msgspec.json.encode(response, enc_hook=lambda value: value.to_dict())`,
`Litestar(…, type_encoders={Response: Response.to_dict, Outcome: Outcome.to_dict})`. A cattrs converter of your own
needs `converter.register_unstructure_hook(Response, Response.to_dict)`.

Unexpected data does not fail. A missing field is None, and an object of an unknown `type` is an `Unknown`. If a value
has the wrong shape, its field is None, or the value is left out of its list or map, and `response.problems` lists it.
`extra` has the fields that no class knows.

A field is created when it is first read, and so are the objects inside. For a response of 1.4 kB, the status takes
0.5 µs, all fields take 9 µs, and every field of every object takes 26 µs. The official package takes 110 to 130 µs to
construct its objects (CPython 3.11; `tests/benchmarks/structuring.py` in the sources).
"""

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
