"""A coverage-guided fuzzer for answers of a server and for files of ids. Run it by hand.

    python -m pip install atheris
    python tests/fuzz_answers.py [-max_total_time=60] [-runs=100000] [FOLDER]

It keeps interesting inputs in the folder. It ends at the first exception of another package, and writes the input to a
file; pass that file to repeat the exception. Without a limit it runs until it is interrupted. For other options see
https://github.com/google/atheris.
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
REQUEST = WIRE.request("POST", "resp_1", "/cancel")
HEADERS = ("retry-after", "retry-after-ms", "x-should-retry", "date", "location", "x-request-id")
BODIES = (b"", b'{"id": "resp_1", "status": "cancelled", "output": ', b'{"error": ', b'{"detail": ')


def fuzz_answer(data: atheris.FuzzedDataProvider) -> None:
    """Decode an answer, and read everything that the result offers."""
    headers = CIMultiDict({name: data.ConsumeUnicode(20) for name in HEADERS if data.ConsumeBool()})
    status = data.ConsumeIntInRange(0, 1000)
    start = BODIES[data.ConsumeIntInRange(0, len(BODIES) - 1)]
    body = start + data.ConsumeBytes(data.remaining_bytes()) + b"}" * bool(start)
    try:
        response = decode(Answer(status, headers, body), REQUEST)
    except OpenAICancelError as error:
        if str(pickle.loads(pickle.dumps(error))) != str(error):
            raise AssertionError("pickling changes the error") from error
        return
    _ = repr(response), response.to_dict(), response.problems, response.output_text, response.created, response.output


def fuzz_lines(data: atheris.FuzzedDataProvider) -> None:
    """Read lines of a file of ids: each is an id that can be sent, or a bad line."""
    reader = IdReader()
    text = data.ConsumeUnicode(data.remaining_bytes())
    found = [item for line in text.split("\n") for item in reader.read(line)]
    for item in [*found, *reader.end()]:
        if not isinstance(item, BadLine):
            WIRE.request("GET", item)


def fuzz(data: bytes) -> None:
    """Choose the target by the first byte."""
    provider = atheris.FuzzedDataProvider(data)
    (fuzz_answer if provider.ConsumeBool() else fuzz_lines)(provider)


if __name__ == "__main__":
    atheris.Setup(sys.argv, fuzz)
    atheris.Fuzz()
