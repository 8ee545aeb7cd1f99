"""Validation of arguments: what is accepted, what is refused, and that no secret is shown."""

import math
import runpy
import traceback
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import KEY

from openai_cancel import AsyncSession, ConfigurationError, InsecureTransportWarning, Session
from openai_cancel.checks import (
    check_count,
    check_function,
    check_headers,
    check_key,
    check_seconds,
    check_url,
    merge_query,
    warn_caller,
)
from openai_cancel.secret_values import Secret


class TestSeconds:
    @pytest.mark.parametrize("value", [1, 0.001, math.inf])
    def test_a_positive_number_is_returned(self, value: float) -> None:
        assert check_seconds("timeout", value) == value

    @pytest.mark.parametrize("value", [0, -1, math.nan, -math.inf, 10**400, True, "5", None])
    def test_other_values_are_refused_by_name(self, value: object) -> None:
        with pytest.raises(ConfigurationError, match="timeout must be a number of seconds greater than 0"):
            check_seconds("timeout", value)


class TestCount:
    def test_a_whole_number_is_returned(self) -> None:
        assert check_count("max_retries", 0) == 0
        assert check_count("concurrency", 1, minimum=1) == 1

    @pytest.mark.parametrize("value", [-1, 1.0, True, "5", None])
    def test_other_values_are_refused_by_name(self, value: object) -> None:
        with pytest.raises(ConfigurationError, match="max_retries must be a whole number of at least 0, not"):
            check_count("max_retries", value)

    def test_a_number_below_the_least_is_refused(self) -> None:
        with pytest.raises(ConfigurationError, match="concurrency must be a whole number of at least 1, not 0"):
            check_count("concurrency", 0, minimum=1)


class TestFunction:
    @pytest.mark.parametrize("value", [print, runpy.run_path, str, [].append])
    def test_what_can_be_called_is_accepted(self, value: object) -> None:
        check_function("select", value)

    def test_what_cannot_be_called_is_refused_by_name(self) -> None:
        with pytest.raises(ConfigurationError, match="^select must be a function, not int"):
            check_function("select", 5)

    def test_a_generator_function_is_refused(self) -> None:
        def generate() -> Iterator[int]:
            yield 1

        with pytest.raises(ConfigurationError, match="^select must be a function without `yield`, which would not run"):
            check_function("select", generate)


class TestHeadersAndQuery:
    def test_names_of_headers_become_lower_case_and_values_are_hidden(self) -> None:
        checked = check_headers({"X-Token": KEY})
        assert checked == {"x-token": KEY}
        assert KEY not in repr(checked)

    def test_the_source_of_a_bad_header_is_named_and_its_value_is_not(self) -> None:
        with pytest.raises(ConfigurationError, match="^OPENAI_CUSTOM_HEADERS: the value of 'a' must be") as caught:
            check_headers({"a": f"{KEY}\n"}, "OPENAI_CUSTOM_HEADERS")
        assert KEY not in str(caught.value)

    def test_parameters_replace_others_of_the_same_name(self) -> None:
        assert merge_query((("a", "1"), ("b", "2"), ("a", "3")), {"a": "4"}) == (("b", "2"), ("a", "4"))

    def test_the_value_of_a_bad_parameter_is_not_quoted(self) -> None:
        with pytest.raises(ConfigurationError, match="query: 'a' and its value must be strings") as caught:
            merge_query((), {"a": f"{KEY}\n"})
        assert KEY not in str(caught.value)

    @pytest.mark.parametrize("check", [check_headers, lambda values: merge_query((), values)])
    def test_a_list_of_pairs_is_no_mapping(self, check) -> None:
        with pytest.raises(ConfigurationError, match="must be a mapping of names to values, not list"):
            check([("a", "b")])


class TestKey:
    def test_a_key_is_returned_hidden(self) -> None:
        key = check_key(KEY, "api_key")
        assert key == KEY
        assert isinstance(key, Secret)

    @pytest.mark.parametrize("key", ["", f"{KEY} ", f"Bearer {KEY}", f"{KEY}é", KEY.encode(), None])
    def test_what_cannot_be_a_key_is_refused_by_its_source_and_not_quoted(self, key: object) -> None:
        with pytest.raises(ConfigurationError, match="^OPENAI_API_KEY ") as caught:
            check_key(key, "OPENAI_API_KEY")
        assert KEY not in str(caught.value)


class TestURL:
    def test_a_url_is_parsed(self) -> None:
        assert check_url("https://host:8000/v1", "base_url", "https://like").port == 8000

    @pytest.mark.parametrize(
        "url", ["host", "ftp://host", "http://", "http://host:port", "http://a b", "http://xn--.example", None]
    )
    def test_what_is_no_url_is_refused_by_its_source(self, url: object) -> None:
        with pytest.raises(ConfigurationError, match="^proxy (must be|is not)"):
            check_url(url, "proxy", "https://like")


class TestWarnCaller:
    def test_a_warning_points_to_the_line_outside_the_package(self) -> None:
        with pytest.warns(InsecureTransportWarning) as caught:
            AsyncSession(api_key=KEY, base_url="http://host.invalid")
        line = traceback.extract_stack()[-1].lineno
        assert (caught[0].filename, line - caught[0].lineno) == (__file__, 1)

    def test_a_warning_of_a_subclass_points_to_the_line_that_creates_it(self) -> None:
        class Mine(Session):
            def __init__(self) -> None:
                super().__init__(api_key=KEY, base_url="http://host.invalid")

        with pytest.warns(InsecureTransportWarning) as caught:
            Mine()
        assert caught[0].filename == __file__

    def test_a_warning_without_a_frame_outside_the_package_is_still_issued(self, tmp_path: Path) -> None:
        """As if the package itself were the main program."""
        script = tmp_path / "inside.py"
        script.write_text("warn('The words.', UserWarning)", encoding="utf-8")
        with warnings.catch_warnings(record=True, action="always") as caught:
            runpy.run_path(str(script), {"warn": warn_caller}, run_name="openai_cancel.inside")
        assert str(caught[0].message) == "The words."
