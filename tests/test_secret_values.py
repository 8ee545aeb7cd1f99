"""Values that the locals of a traceback do not show."""

from collections import UserDict
from types import MappingProxyType

import pytest
from conftest import KEY

from openai_cancel.checks import check_url
from openai_cancel.secret_values import Secret, SecretMapping, hidden


class TestHidden:
    def test_a_hidden_string_is_equal_to_the_string_and_has_another_repr(self) -> None:
        value = hidden(KEY)
        assert value == KEY
        assert isinstance(value, Secret)
        assert f"{value!r} {[value]}" == "'***' ['***']"

    def test_a_part_of_a_hidden_string_is_hidden_too(self) -> None:
        """rich shows the first 80 characters of a string, and the keys of OpenAI have 164."""
        value = hidden(KEY * 9)
        assert value[:80] == (KEY * 9)[:80]
        assert f"{value[:80]!r} {value[0]!r}" == "'***' '***'"

    @pytest.mark.parametrize("kind", [dict, MappingProxyType, UserDict])
    def test_a_hidden_mapping_is_an_equal_copy_that_shows_its_names_only(self, kind) -> None:
        values = {"X-Token": KEY}
        copy = hidden(kind(values))
        assert isinstance(copy, SecretMapping)
        assert copy == values
        assert repr(copy) == "{'X-Token': '***'}"
        values["X-Token"] = "changed"
        assert copy["X-Token"] == KEY

    def test_mappings_inside_a_mapping_are_hidden_too(self) -> None:
        assert repr(SecretMapping({"a": {"b": KEY}})) == "{'a': {'b': '***'}}"

    @pytest.mark.parametrize("value", [None, check_url])
    def test_none_and_plain_functions_are_returned_as_they_are(self, value: object) -> None:
        assert hidden(value) is value

    @pytest.mark.parametrize(("value", "kind"), [(5, "int"), (KEY.encode(), "bytes"), ([("a", KEY)], "list")])
    def test_a_value_of_a_wrong_type_is_withheld_but_for_its_type(self, value: object, kind: str) -> None:
        withheld = hidden(value)
        assert (withheld.kind, repr(withheld)) == (kind, "***")
        assert hidden(withheld) is withheld
