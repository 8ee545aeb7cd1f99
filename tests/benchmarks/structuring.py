"""The time to make typed objects from a document, compared with the official package and bare JSON parsing.

    python tests/benchmarks/structuring.py

Everything is measured in one run, in turns: compare the medians and their ratios. The times are processor time of the
thread, which other load disturbs less than the clock. A field is made when it is first read, so there are several
columns for this package:

    status      make the response and read its status
    text        make the response and read its `output_text`
    fields      make the response and read each of its fields
    everything  make the response and read each field of each object in it

The official package makes all objects at once (`openai`). Its second column reads everything, as ours does.
"""

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import attrs
import openai
import orjson
from openai._models import construct_type
from openai.types.responses import Response as Theirs
from pydantic import BaseModel

from openai_cancel.converter import response_hook
from openai_cancel.emulator import Script, Work
from openai_cancel.models import Response
from openai_cancel.models.shared import Model

Calls = dict[str, Callable[[], object]]

ITEM = {
    "id": "msg_67ccd3acc8d48190a77525dc6de64b4104becb25c45c1d41",
    "type": "message",
    "status": "completed",
    "role": "assistant",
    "content": [
        {
            "type": "output_text",
            "text": "The image depicts a scenic landscape with a wooden boardwalk. " * 4,
            "annotations": [
                {
                    "type": "url_citation",
                    "start_index": 0,
                    "end_index": 9,
                    "url": "https://example.com/",
                    "title": "A page",
                }
            ],
        }
    ],
}
CALL = {
    "id": "fc_67ccd3acc8d48190a77525dc6de64b4104becb25c45c1d41",
    "type": "function_call",
    "status": "completed",
    "call_id": "call_67ccd3acc8d48190a77525dc",
    "name": "get_current_weather",
    "arguments": '{"location": "Boston, MA", "unit": "celsius"}',
}
REASONING = {"id": "rs_67cc", "type": "reasoning", "summary": [{"type": "summary_text", "text": "Think first. " * 10}]}


def document(items: int) -> dict[str, Any]:
    """Return a completed response as OpenAI sends it, with this number of additional items of three kinds."""
    request = {"model": "gpt-4o-2024-08-06", "background": True, "metadata": {"tenant": "a", "job": "b"}}
    text = "The image depicts a scenic landscape with a wooden boardwalk. " * 4
    whole = Work(request=request, script=Script(runs_for=0, says=text), started=1741476777).document(2e9)
    whole["output"] += [(ITEM, CALL, REASONING)[index % 3] for index in range(items)]
    return whole


COLD = """
import json, time
data = json.loads({data!r})
{setup}
began = time.process_time()
{call}
print((time.process_time() - began) * 1e3)
"""
OURS = "from openai_cancel.converter import response_hook"
THEIRS = "from openai.types.responses import Response; from openai._models import construct_type"
FIRST = {
    "status": (OURS, "response_hook()(data).status"),
    "everything": (OURS, "response_hook()(data).problems"),
    "openai": (THEIRS, "construct_type(type_=Response, value=data)"),
}


def cold(setup: str, call: str, data: dict[str, Any]) -> float:
    """Return the milliseconds for the first document in a process that has imported all that it needs."""
    script = COLD.format(data=json.dumps(data), setup=setup, call=call)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return float(done.stdout)


def hot(calls: Calls, rounds: int, batch: int) -> dict[str, float]:
    """Return the median microseconds of each call. The calls take turns, in batches."""
    for call in calls.values():
        call()
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            began = time.thread_time()
            for _ in range(batch):
                call()
            times[name].append((time.thread_time() - began) / batch * 1e6)
    return {name: statistics.median(taken) for name, taken in times.items()}


def recorded_bodies(least: int, most: int) -> list[dict[str, Any]]:
    """Return recorded bodies of a size in bytes, if there are any beside the project."""
    beside = Path(__file__).parents[3] / "shared"
    folder = Path(os.environ.get("OPENAI_CANCEL_SHARED", beside)) / "corpus"
    bodies = [json.loads(path.read_bytes()) for path in sorted(folder.glob("*.json"))]
    return [body for body in bodies if least <= len(json.dumps(body)) < most]


@cache
def field_names(cls: type[Any]) -> tuple[str, ...]:
    """Return the names of the fields of a class, ours or theirs."""
    return tuple(field.name for field in attrs.fields(cls)) if issubclass(cls, Model) else tuple(cls.model_fields)


def read_fields(response: Response) -> None:
    """Read each field of a response, and none of the objects in it."""
    for name in field_names(Response):
        getattr(response, name)


def read_everything(value: object) -> None:
    """Read each field of each object."""
    if isinstance(value, Model | BaseModel):
        for name in field_names(type(value)):
            inner = getattr(value, name)
            if inner is not None and type(inner) is not str:
                read_everything(inner)
    elif type(value) is list:
        for item in value:
            read_everything(item)


def calls_for(data: dict[str, Any]) -> Calls:
    """Return the calls to measure for a document."""
    structure = response_hook()
    return {
        "status": lambda: structure(data).status,
        "text": lambda: structure(data).output_text,
        "fields": lambda: read_fields(structure(data)),
        "everything": lambda: read_everything(structure(data)),
        "openai": lambda: construct_type(type_=Theirs, value=data),
        "and reads": lambda: read_everything(construct_type(type_=Theirs, value=data)),
    }


def main() -> None:
    """Print the figures."""
    print(f"Python {sys.version.split()[0]}, openai {openai.__version__}, orjson {orjson.__version__}\n")
    small = document(0)
    first = {name: statistics.median(cold(*how, small) for _ in range(7)) for name, how in FIRST.items()}
    print("first document of a process:", ", ".join(f"{name} {taken:.2f} ms" for name, taken in first.items()))
    print(f"everything {first['openai'] / first['everything']:.1f} times faster than openai\n")

    names = [*calls_for(small), "orjson", "json"]
    print(f"{'body':>10} {' '.join(f'{name:>12}' for name in names)}   times faster than openai, everything read")
    for items, rounds, batch in ((0, 60, 50), (140, 60, 3), (2800, 15, 1)):
        data = document(items)
        body = json.dumps(data).encode()
        parsers: Calls = {"orjson": lambda body=body: orjson.loads(body), "json": lambda body=body: json.loads(body)}
        taken = hot(calls_for(data) | parsers, rounds, batch)
        figures = " ".join(f"{value:>9.1f} µs" for value in taken.values())
        print(f"{len(body) / 1000:>7.1f} kB {figures}   {taken['and reads'] / taken['everything']:.1f}")

    bodies = recorded_bodies(1500, 2000)[:30]
    every = [hot(calls_for(body), 10, 20) for body in bodies]
    if every:
        medians = {name: statistics.median(taken[name] for taken in every) for name in every[0]}
        figures = " ".join(f"{value:>9.1f} µs" for value in medians.values())
        print(f"{len(every)} recorded bodies of 1.5 to 2 kB:")
        print(f"{'':>10} {figures} {'':>25}   {medians['and reads'] / medians['everything']:.1f}")


if __name__ == "__main__":
    main()
