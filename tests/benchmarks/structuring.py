"""How long it takes to make typed objects of a document, beside the official package and bare JSON parsing.

    python tests/benchmarks/structuring.py

Everything is measured in one run, in turns; the medians and their ratios are what to look at. A response is
structured as it is read: `all made` is until all objects in it are there.
"""

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs

from openai_cancel.emulator import Script, Work
from openai_cancel.models import Response

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
    """A completed response as OpenAI sends it, with so many items more of three kinds."""
    request = {"model": "gpt-4o-2024-08-06", "background": True, "metadata": {"tenant": "a", "job": "b"}}
    said = "The image depicts a scenic landscape with a wooden boardwalk. " * 4
    whole = Work(request=request, script=Script(runs_for=0, says=said), started=1741476777).document(2e9)
    whole["output"] += [(ITEM, CALL, REASONING)[index % 3] for index in range(items)]
    return whole


COLD = """
import json, time
data = json.loads({data!r})
{setup}
began = time.perf_counter()
{call}
print((time.perf_counter() - began) * 1e3)
"""
OURS = ("from openai_cancel.converter import response_hook", "response_hook()(data).problems")
THEIRS = (
    "from openai.types.responses import Response; from openai._models import construct_type",
    "construct_type(type_=Response, value=data)",
)


def cold(setup: str, call: str, data: dict[str, Any]) -> float:
    """Milliseconds that the first document takes in a process that has imported all it needs."""
    script = COLD.format(data=json.dumps(data), setup=setup, call=call)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return float(done.stdout)


def hot(calls: dict[str, Callable[[], object]], rounds: int, batch: int) -> dict[str, float]:
    """Median microseconds of each call, in batches that take turns."""
    for call in calls.values():
        call()
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            began = time.perf_counter()
            for _ in range(batch):
                call()
            times[name].append((time.perf_counter() - began) / batch * 1e6)
    return {name: statistics.median(taken) for name, taken in times.items()}


def recorded_bodies(least: int, most: int) -> list[dict[str, Any]]:
    """Real bodies of a size in bytes, where there are any beside the project."""
    beside = Path(__file__).parents[3] / "shared"
    folder = Path(os.environ.get("OPENAI_CANCEL_SHARED", beside)) / "corpus"
    bodies = [json.loads(path.read_bytes()) for path in sorted(folder.glob("*.json"))]
    return [body for body in bodies if least <= len(json.dumps(body)) < most]


def make_all(response: Response) -> Response:
    """Read its lists; with the first field that is read all others are made."""
    response.output, response.tools  # noqa: B018 - makes them
    return response


def main() -> None:
    """Print the figures."""
    import openai
    import orjson
    from openai._models import construct_type
    from openai.types.responses import Response as Theirs

    from openai_cancel.converter import response_hook

    print(f"Python {sys.version.split()[0]}, openai {openai.__version__}, orjson {orjson.__version__}\n")
    small = document(0)
    first = {
        name: statistics.median(cold(*how, small) for _ in range(7))
        for name, how in (("ours", OURS), ("openai", THEIRS))
    }
    ratio = first["openai"] / first["ours"]
    print(
        f"first document, all made: {first['ours']:.2f} ms, openai {first['openai']:.2f} ms, {ratio:.1f} times faster\n"
    )

    structure = response_hook()
    made = vars(make_all(structure(document(2800))))
    assert {field.name for field in attrs.fields(Response)} <= set(made), "something is left to be made"
    names = ("ours", "all made", "openai", "orjson", "json")
    print(f"{'body':>10} {' '.join(f'{name:>12}' for name in names)}   times faster than openai, all made")
    for items, rounds, batch in ((0, 60, 50), (140, 60, 3), (2800, 15, 1)):
        data = document(items)
        body = json.dumps(data).encode()
        taken = hot(
            {
                "ours": lambda data=data: structure(data),
                "all made": lambda data=data: make_all(structure(data)),
                "openai": lambda data=data: construct_type(type_=Theirs, value=data),
                "orjson": lambda body=body: orjson.loads(body),
                "json": lambda body=body: json.loads(body),
            },
            rounds,
            batch,
        )
        figures = " ".join(f"{value:>9.1f} µs" for value in taken.values())
        print(f"{len(body) / 1000:>7.1f} kB {figures}   {taken['openai'] / taken['all made']:.1f}")

    ratios: list[float] = []
    for recorded in recorded_bodies(1500, 2000)[:30]:
        taken = hot(
            {
                "all made": lambda data=recorded: make_all(structure(data)),
                "openai": lambda data=recorded: construct_type(type_=Theirs, value=data),
            },
            10,
            20,
        )
        ratios.append(taken["openai"] / taken["all made"])
    if ratios:
        print(f"\n{len(ratios)} recorded bodies of 1.5 to 2 kB, all made: {statistics.median(ratios):.1f} times faster")


if __name__ == "__main__":
    main()
