"""A fuzzer that is led by coverage: bytes become answers of a server, and files of ids. Run by hand.

    python -m pip install atheris
    python tests/fuzz_answers.py [-max_total_time=60] [-runs=100000] [a folder for what it finds out]

It ends at the first exception that is not ours, and writes the bytes that did it to a file; give it that file to see it
again. Without a limit it runs until it is interrupted. See https://github.com/google/atheris for its other options.
"""

import pickle
import sys

import atheris

with atheris.instrument_imports(include=["openai_cancel"]):
    from multidict import CIMultiDict

    from openai_cancel.cli.ids import BadLine, IdReader
    from openai_cancel.errors import OpenAICancelError
    from openai_cancel.settings import Settings
    from openai_cancel.wire import Answer, Wire, decode

WIRE = Wire.from_settings(Settings.openai(api_key="sk-a-key-of-the-fuzzer", base_url="https://host/v1"))
ASKED = WIRE.request("POST", "resp_1", "/cancel")
HEADERS = ("retry-after", "retry-after-ms", "x-should-retry", "date", "location", "x-request-id")
BODIES = (b"", b'{"id": "resp_1", "status": "cancelled", "output": ', b'{"error": ', b'{"detail": ')


def answer(data: atheris.FuzzedDataProvider) -> None:
    """What `decode` makes of it, and all that can be done with that."""
    headers = CIMultiDict({name: data.ConsumeUnicode(20) for name in HEADERS if data.ConsumeBool()})
    status = data.ConsumeIntInRange(0, 1000)
    start = BODIES[data.ConsumeIntInRange(0, len(BODIES) - 1)]
    body = start + data.ConsumeBytes(data.remaining_bytes()) + b"}" * bool(start)
    try:
        response = decode(Answer(status, headers, body), ASKED)
    except OpenAICancelError as error:
        if str(pickle.loads(pickle.dumps(error))) != str(error):
            raise AssertionError("another error after pickling") from error
        return
    _ = repr(response), response.to_dict(), response.problems, response.output_text, response.created, response.output


def lines(data: atheris.FuzzedDataProvider) -> None:
    """What a file of ids gives: ids that can be sent, or bad lines."""
    reader = IdReader()
    text = data.ConsumeUnicode(data.remaining_bytes())
    found = [item for line in text.split("\n") for item in reader.read(line)]
    for item in [*found, *reader.end()]:
        if not isinstance(item, BadLine):
            WIRE.request("GET", item)


def fuzz(data: bytes) -> None:
    """The first byte says which it is."""
    provider = atheris.FuzzedDataProvider(data)
    (answer if provider.ConsumeBool() else lines)(provider)


if __name__ == "__main__":
    atheris.Setup(sys.argv, fuzz)
    atheris.Fuzz()
