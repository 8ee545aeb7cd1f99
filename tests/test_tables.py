"""Lists of responses, outcomes and results of waits in pandas and rich: columns, and not objects."""

import io

import pytest
from documents import DOCUMENT
from outcomes import MISSING, ended, outcome, response
from rich import inspect
from rich.console import Console

from openai_cancel import Verdict

DONE = outcome("resp_1", Verdict.ALREADY_FINISHED, response=response(**DOCUMENT))


@pytest.mark.slow  # pandas takes long to import
def test_pandas_makes_a_table_with_a_column_for_each_field() -> None:
    import pandas as pd

    table = pd.json_normalize([each.to_dict() for each in (DONE, MISSING)])
    assert [*table["response_id"]] == ["resp_1", "resp_2"]
    assert [*table["verdict"]] == ["already_finished", "not_found"]
    assert table["response.usage.total_tokens"][0] == 380
    assert table["error.status"][1] == 404
    responses = pd.json_normalize([response(**DOCUMENT).to_dict()] * 2)
    assert [*responses["usage.output_tokens"]] == [52, 52]
    assert [*pd.DataFrame(each.to_dict() for each in [ended(), ended()])["ended"]] == [True, True]
    assert pd.DataFrame(map(vars, [DONE, MISSING])).shape == (2, 8)


@pytest.mark.parametrize("value", [DONE, MISSING, ended(), response(**DOCUMENT)])
def test_rich_prints_the_fields_and_inspects_an_object(value) -> None:
    console = Console(file=io.StringIO(), width=100)
    console.print([value])
    printed = console.file.getvalue()
    assert printed.lstrip("[ \n").startswith(f"{type(value).__name__}(")
    assert "id='resp_" in printed
    assert "__" not in printed
    inspect(value, console=console)
    assert "to_dict" not in printed
