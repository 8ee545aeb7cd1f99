"""Rows as arrays: which rows one execution of a statement writes."""

from openai_cancel.ledger.arrays import arrays


def row(key: str, value: int = 0) -> dict[str, object]:
    return {"key": key, "value": value}


def test_rows_with_different_keys_are_written_at_once() -> None:
    assert [*arrays([row("a", 1), row("b", 2)], "key")] == [{"key_array": ["a", "b"], "value_array": [1, 2]}]


def test_a_repetition_is_left_out() -> None:
    assert [*arrays([row("a"), row("b"), row("a"), row("a")], "key")] == [
        {"key_array": ["a", "b"], "value_array": [0, 0]}
    ]


def test_what_else_is_done_to_a_row_follows_in_its_order() -> None:
    rows = [row("a", 1), row("a", 2), row("b", 3), row("a", 1), row("b", 4)]
    assert [*arrays(rows, "key")] == [
        {"key_array": ["a", "b"], "value_array": [1, 3]},
        {"key_array": ["a", "b"], "value_array": [2, 4]},
        {"key_array": ["a"], "value_array": [1]},
    ]
