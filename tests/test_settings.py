"""`Settings`: arguments, then the environment; and what is refused before anything is sent."""

import asyncio
import math
import warnings

import httpx2
import openai
import pytest
from conftest import KEY

from openai_cancel import AsyncSession, Session
from openai_cancel.errors import ConfigurationError, InsecureTransportWarning
from openai_cancel.secret_values import Secret
from openai_cancel.settings import Settings


class TestOpenAI:
    def test_the_defaults_are_those_of_openai(self) -> None:
        settings = Settings.openai(api_key=KEY)
        assert settings.base_url == "https://api.openai.com/v1"
        assert (settings.timeout, settings.connect_timeout, settings.deadline) == (30.0, 5.0, 60.0)
        assert (settings.max_retries, settings.max_body_bytes) == (4, 64 * 1024 * 1024)
        assert (settings.headers, settings.query, settings.proxy) == ({}, (), None)

    def test_the_environment_supplies_what_was_not_passed(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for name, value in {
            "OPENAI_API_KEY": KEY,
            "OPENAI_BASE_URL": "http://localhost:8000/v1/",
            "OPENAI_ORG_ID": "org_1",
            "OPENAI_PROJECT_ID": "proj_1",
            "OPENAI_CUSTOM_HEADERS": "X-A: 1\n\nx-b:  two: parts \n",
        }.items():
            monkeypatch.setenv(name, value)
        settings = Settings.openai()
        assert settings.api_key == KEY
        assert settings.base_url == "http://localhost:8000/v1"
        assert settings.headers == {
            "openai-organization": "org_1",
            "openai-project": "proj_1",
            "x-a": "1",
            "x-b": "two: parts",
        }

    def test_arguments_take_precedence_over_the_environment(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for name in ("API_KEY", "ORG_ID", "PROJECT_ID"):
            monkeypatch.setenv(f"OPENAI_{name}", "ambient")
        monkeypatch.setenv("OPENAI_BASE_URL", "ftp://ambient")
        monkeypatch.setenv("OPENAI_CUSTOM_HEADERS", "Authorization: ambient\nX-A: ambient\nX-B: kept")
        settings = Settings.openai(
            api_key=KEY, base_url="http://h", organization="o", project="p", headers={"x-A": "mine"}
        )
        assert settings.api_key == KEY
        assert settings.headers == {"openai-organization": "o", "openai-project": "p", "x-a": "mine", "x-b": "kept"}

    def test_empty_variables_count_as_unset(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("OPENAI_BASE_URL", "")
        monkeypatch.setenv("OPENAI_CUSTOM_HEADERS", "")
        assert Settings.openai(api_key=KEY).base_url == "https://api.openai.com/v1"

    @pytest.mark.parametrize("name", ["Authorization", "api-key"])
    def test_headers_with_credentials_make_a_key_unnecessary(self, name: str) -> None:
        assert Settings.openai(headers={name: "x"}).api_key is None

    def test_the_error_about_a_missing_key_names_the_variable(self) -> None:
        with pytest.raises(
            ConfigurationError,
            match="No API key: set OPENAI_API_KEY or pass api_key=. If the server",
        ):
            Settings.openai()

    def test_a_line_of_custom_headers_without_a_colon_is_refused_by_number(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("OPENAI_CUSTOM_HEADERS", "A: 1\nsecret")
        with pytest.raises(ConfigurationError, match="OPENAI_CUSTOM_HEADERS: line 2 has no colon") as caught:
            Settings.openai(api_key=KEY)
        assert "secret" not in str(caught.value)

    def test_the_repr_of_settings_contains_no_secret(self) -> None:
        settings = Settings.openai(
            api_key=KEY, headers={"X-Token": "hidden"}, query={"code": "hidden"}, proxy="http://u:hidden@proxy"
        )
        assert KEY not in repr(settings)
        assert "hidden" not in repr(settings)
        assert repr(Secret(KEY)) == "'***'"


class TestKeys:
    @pytest.mark.parametrize(
        ("key", "message"),
        [
            ("", "api_key is empty"),
            (f"{KEY}\n", "such as the newline at the end of a file: remove it"),
            (f" {KEY}", "begins or ends with white space"),
            (f'"{KEY}"', "is in quotes, which are no part of a key: remove them"),  # as `docker --env-file` has it
            (f"'{KEY}", "is in quotes"),
            (f"Bearer {KEY}", "pass the key alone, without 'Bearer'"),
            (f"{KEY}\N{RIGHT DOUBLE QUOTATION MARK}", "a character that is not ASCII"),
            (f"{KEY[:5]}\x00{KEY}", "a character that is not ASCII"),
            (5, "must be a string, not int"),
            (KEY.encode(), "must be a string, not bytes"),
        ],
    )
    def test_a_key_that_cannot_be_sent_is_refused_without_quoting_it(self, key: object, message: str) -> None:
        with pytest.raises(ConfigurationError, match=message) as caught:
            Settings.openai(api_key=key)
        assert KEY not in str(caught.value)

    def test_the_error_about_a_bad_key_from_the_environment_names_the_variable(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("OPENAI_API_KEY", f"{KEY}\n")
        with pytest.raises(ConfigurationError, match="^OPENAI_API_KEY begins or ends with white space"):
            Settings.openai()

    async def test_a_key_function_is_called_each_time(self) -> None:
        keys = iter(["first", "second"])
        settings = Settings.openai(api_key=lambda: next(keys))
        assert [await settings.ask_for_key(), await settings.ask_for_key()] == ["first", "second"]

    async def test_an_async_key_function_is_awaited(self) -> None:
        async def provide() -> str:
            await asyncio.sleep(0)
            return KEY

        assert await Settings.openai(api_key=provide).ask_for_key() == KEY

    async def test_the_value_that_a_key_function_returns_is_checked(self) -> None:
        with pytest.raises(ConfigurationError, match="the api_key function returned must be a string, not None"):
            await Settings.openai(api_key=lambda: None).ask_for_key()


class TestURLs:
    @pytest.mark.parametrize(
        ("given", "base_url", "query"),
        [
            ("http://localhost:8000", "http://localhost:8000", ()),
            ("http://localhost:8000/", "http://localhost:8000", ()),
            ("HTTPS://Host/v1///", "https://host/v1", ()),
            ("http://[::1]:8000/v1", "http://[::1]:8000/v1", ()),
            ("http://bücher.example/v1", "http://xn--bcher-kva.example/v1", ()),
            ("https://h/a%20b/v1?api-version=1&x=", "https://h/a%20b/v1", (("api-version", "1"), ("x", ""))),
        ],
    )
    def test_a_base_url_may_have_a_path_and_a_query(self, given: str, base_url: str, query: dict[str, str]) -> None:
        settings = Settings.openai(api_key=KEY, base_url=given)
        assert (settings.base_url, settings.query) == (base_url, query)

    @pytest.mark.parametrize(
        ("url", "message"),
        [
            ("", "base_url must be an http:// or https:// URL"),
            ("api.openai.com/v1", "base_url must be an http:// or https:// URL"),
            ("localhost:8000/v1", "base_url must be an http:// or https:// URL"),
            ("ftp://host/v1", "base_url must be an http:// or https:// URL"),
            ("http:///v1", "base_url must be an http:// or https:// URL"),
            ("http://host/v1\n", "without white space"),
            ("http://ho st/v1", "without white space|is not a URL"),
            ("http://host:port/v1", "base_url is not a URL"),
            ("http://host:99999/v1", "base_url is not a URL"),
            ("http://[::1/v1", "base_url is not a URL"),
            ("http://a..b/v1", "base_url is not a URL"),
            (f"http://{'a' * 64}.example/v1", "base_url is not a URL"),
            (5, "base_url must be a string, not int"),
            ("https://host/v1/responses/", "remove /responses"),
            ("http://user:hunter2@host/v1", "base_url must not contain a user name or password"),
            ("http://hunter2@host/v1", "base_url must not contain a user name or password"),
            ("http://host/v1#hunter2", "base_url must not contain a fragment"),
        ],
    )
    def test_a_base_url_that_cannot_be_used_is_refused_without_quoting_it(self, url: object, message: str) -> None:
        with pytest.raises(ConfigurationError, match=message) as caught:
            Settings.openai(api_key=KEY, base_url=url)
        assert "hunter2" not in str(caught.value)
        assert caught.value.__cause__ is None

    def test_the_error_about_a_bad_base_url_from_the_environment_names_the_variable(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("OPENAI_BASE_URL", "api.openai.com")
        with pytest.raises(ConfigurationError, match="^OPENAI_BASE_URL must be"):
            Settings.openai(api_key=KEY)


class TestLimits:
    @pytest.mark.parametrize("name", ["timeout", "connect_timeout", "deadline"])
    @pytest.mark.parametrize("value", [0, -1, math.nan, -math.inf, 10**400, True, "5", None])
    def test_a_duration_that_is_not_positive_or_no_number_is_refused(self, name: str, value: object) -> None:
        with pytest.raises(ConfigurationError, match=f"{name} must be a number of seconds greater than 0"):
            Settings.openai(api_key=KEY, **{name: value})

    @pytest.mark.parametrize("value", [0.001, 5, math.inf])
    def test_a_positive_duration_is_accepted(self, value: float) -> None:
        assert Settings.openai(api_key=KEY, timeout=value).timeout == value

    @pytest.mark.parametrize("value", [-1, 1.5, True, "5", None])
    def test_a_number_of_retries_that_is_negative_or_no_integer_is_refused(self, value: object) -> None:
        with pytest.raises(ConfigurationError, match="max_retries must be a whole number of at least 0"):
            Settings.openai(api_key=KEY, max_retries=value)

    def test_a_body_limit_of_zero_bytes_is_refused(self) -> None:
        with pytest.raises(ConfigurationError, match="max_body_bytes must be a whole number of at least 1"):
            Settings.openai(api_key=KEY, max_body_bytes=0)

    def test_what_is_no_ledger_is_refused(self) -> None:
        with pytest.raises(ConfigurationError, match="ledger must be an openai_cancel.ledger.Ledger, not str"):
            Settings.openai(api_key=KEY, ledger="sqlite:///x")

    @pytest.mark.parametrize("account", ["", "a\nb", 5])
    def test_an_account_that_is_empty_or_contains_control_characters_is_refused(self, account: object) -> None:
        with pytest.raises(ConfigurationError, match="account must be a non-empty string without control characters"):
            Settings.openai(api_key=KEY, account=account)

    def test_an_unknown_option_is_a_type_error(self) -> None:
        with pytest.raises(TypeError, match="tiemout"):
            Settings.openai(api_key=KEY, tiemout=5)


class TestHeaders:
    @pytest.mark.parametrize(
        ("headers", "message"),
        [
            ({"X-A": "secret\r\nX-B: 1"}, "the value of 'X-A' must be a string without line breaks"),
            ({"X-A": "secret\x00"}, "without line breaks or control characters"),
            ({"X-A": "secret\ud800"}, "without line breaks or control characters"),
            ({"X-A": 5}, "must be a string"),
            ({"X A": "secret"}, "'X A' is not a header name"),
            ({"X-A\n": "secret"}, "is not a header name"),
            ({"": "secret"}, "'' is not a header name"),
            ({5: "secret"}, "5 is not a header name"),
            ({"Content-Length": "5"}, "'Content-Length' frames the request"),
            ({"Transfer-Encoding": "chunked"}, "frames the request"),
        ],
    )
    def test_a_header_that_cannot_be_sent_is_refused_without_quoting_its_value(
        self, headers: dict, message: str
    ) -> None:
        with pytest.raises(ConfigurationError, match=message) as caught:
            Settings.openai(api_key=KEY, headers=headers)
        assert "secret" not in str(caught.value)

    @pytest.mark.parametrize("name", ["organization", "project"])
    def test_an_organization_or_project_that_cannot_be_sent_is_refused_by_its_source(
        self, name: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with pytest.raises(ConfigurationError, match=f"{name}: the value of 'openai-{name}' must be a string"):
            Settings.openai(api_key=KEY, **{name: "o\n"})
        with pytest.raises(ConfigurationError, match="must be a string"):
            Settings.openai(api_key=KEY, **{name: 5})
        variable = {"organization": "OPENAI_ORG_ID", "project": "OPENAI_PROJECT_ID"}[name]
        monkeypatch.setenv(variable, "o\n")
        with pytest.raises(ConfigurationError, match=variable):
            Settings.openai(api_key=KEY)

    @pytest.mark.parametrize("options", [{"headers": [("a", "b")]}, {"query": "a=b"}])
    def test_headers_and_query_must_be_mappings(self, options: dict) -> None:
        with pytest.raises(ConfigurationError, match="must be a mapping of names to values"):
            Settings.openai(api_key=KEY, **options)

    def test_a_header_value_may_contain_a_tab_and_unicode(self) -> None:
        assert Settings.openai(api_key=KEY, headers={"X-A": "a\tü"}).headers == {"x-a": "a\tü"}

    @pytest.mark.parametrize("query", [{"a": 1}, {1: "a"}, {"a": "\ud800"}])
    def test_a_query_parameter_must_be_a_string_without_surrogates(self, query: dict) -> None:
        with pytest.raises(ConfigurationError, match="must be strings"):
            Settings.openai(api_key=KEY, query=query)


class TestAzure:
    @pytest.mark.parametrize(
        "endpoint",
        ["https://n.openai.azure.com", "https://n.openai.azure.com/", "https://n.openai.azure.com/openai/v1/"],
    )
    def test_an_endpoint_without_a_version_means_the_v1_api(self, endpoint: str) -> None:
        settings = Settings.azure(endpoint, api_key=KEY)
        assert settings.base_url == "https://n.openai.azure.com/openai/v1"
        assert (settings.key_header, settings.query) == ("api-key", ())

    @pytest.mark.parametrize(
        ("version", "path"), [("preview", "/openai/v1"), ("2025-04-01-preview", "/openai"), ("v1", "/openai/v1")]
    )
    def test_the_version_of_the_api_decides_the_path_and_is_sent(self, version: str, path: str) -> None:
        settings = Settings.azure("https://h", api_key=KEY, api_version=version)
        assert (settings.base_url, settings.query) == (f"https://h{path}", (("api-version", version),))

    def test_the_environment_supplies_what_was_not_passed(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("AZURE_OPENAI_ENDPOINT", "https://h")
        monkeypatch.setenv("AZURE_OPENAI_API_KEY", KEY)
        monkeypatch.setenv("OPENAI_API_VERSION", "2025-03-01-preview")
        settings = Settings.azure()
        assert (settings.base_url, settings.api_key) == ("https://h/openai", KEY)
        assert settings.query == (("api-version", "2025-03-01-preview"),)

    def test_a_token_provider_is_sent_as_a_bearer_token(self) -> None:
        settings = Settings.azure("https://h", token_provider=lambda: "token")
        assert settings.key_header == "authorization"
        assert callable(settings.api_key)

    @pytest.mark.parametrize("credentials", [{"api_key": KEY}, {"token_provider": lambda: KEY}])
    def test_an_argument_replaces_credentials_among_the_custom_headers(self, credentials: dict, monkeypatch) -> None:
        monkeypatch.setenv("OPENAI_CUSTOM_HEADERS", "Authorization: Bearer ambient\nAPI-Key: ambient\nX-A: kept")
        assert Settings.azure("https://h", **credentials).headers == {"x-a": "kept"}

    def test_a_missing_endpoint_a_missing_key_and_two_credentials_are_refused(self) -> None:
        with pytest.raises(ConfigurationError, match="pass endpoint, or set AZURE_OPENAI_ENDPOINT"):
            Settings.azure(api_key=KEY)
        with pytest.raises(ConfigurationError, match="set AZURE_OPENAI_API_KEY"):
            Settings.azure("https://h")
        with pytest.raises(ConfigurationError, match="not both"):
            Settings.azure("https://h", api_key=KEY, token_provider=lambda: KEY)


class TestFromOpenAI:
    def test_everything_that_the_client_sends_is_copied(self) -> None:
        with openai.OpenAI(
            api_key=KEY,
            base_url="http://h/v1/?a=b",
            organization="o",
            project="p",
            default_headers={"X-A": "1", "OpenAI-Project": "q"},
            default_query={"c": "d", "e": 5},
        ) as client:
            settings = Settings.from_openai(client, headers={"x-b": "2"}, query={"f": "g"}, timeout=7)
        assert (settings.api_key, settings.base_url, settings.timeout) == (KEY, "http://h/v1", 7)
        assert settings.headers == {"openai-organization": "o", "openai-project": "q", "x-a": "1", "x-b": "2"}
        assert settings.query == (("a", "b"), ("c", "d"), ("e", "5"), ("f", "g"))

    async def test_a_key_function_of_the_client_is_used(self) -> None:
        async def provide() -> str:
            return KEY

        async with openai.AsyncOpenAI(api_key=provide) as client:
            assert await Settings.from_openai(client).ask_for_key() == KEY

    def test_the_environment_is_not_read_again(self, monkeypatch: pytest.MonkeyPatch) -> None:
        with openai.OpenAI(api_key=KEY) as client:
            monkeypatch.setenv("OPENAI_BASE_URL", "http://elsewhere")
            monkeypatch.setenv("OPENAI_CUSTOM_HEADERS", "A: 1")
            settings = Settings.from_openai(client)
        assert (settings.base_url, settings.headers) == ("https://api.openai.com/v1", {})

    def test_an_azure_client_with_a_key_and_a_deployment_is_copied(self) -> None:
        with openai.AzureOpenAI(
            azure_endpoint="https://h/", azure_deployment="d", api_version="2025-03-01-preview", api_key=KEY
        ) as client:
            settings = Settings.from_openai(client)
        assert (settings.base_url, settings.query) == ("https://h/openai", (("api-version", "2025-03-01-preview"),))
        assert (settings.api_key, settings.key_header) == (KEY, "api-key")

    @pytest.mark.parametrize("credentials", [{"azure_ad_token": KEY}, {"azure_ad_token_provider": lambda: KEY}])
    async def test_an_azure_client_with_entra_id_sends_a_bearer_token(self, credentials: dict) -> None:
        with openai.AzureOpenAI(azure_endpoint="https://h", api_version="v", **credentials) as client:
            settings = Settings.from_openai(client)
        assert settings.key_header == "authorization"
        assert (await settings.ask_for_key() if callable(settings.api_key) else settings.api_key) == KEY

    def test_a_client_whose_headers_contain_the_credentials_needs_no_key(self) -> None:
        with openai.OpenAI(api_key="", admin_api_key="a", default_headers={"Authorization": "Basic x"}) as client:
            settings = Settings.from_openai(client)
        assert (settings.api_key, settings.headers["authorization"]) == (None, "Basic x")

    def test_a_client_whose_credentials_cannot_be_copied_is_refused(self) -> None:
        with (
            openai.OpenAI(api_key="", admin_api_key="a") as client,
            pytest.raises(ConfigurationError, match="cannot be copied: create the session with api_key="),
        ):
            Settings.from_openai(client)

    def test_omitted_headers_are_not_copied(self) -> None:
        with openai.OpenAI(api_key=KEY, default_headers={"X-A": openai.Omit()}) as client:
            assert Settings.from_openai(client).headers == {}

    @pytest.mark.parametrize("thing", [None, "client", object()])
    def test_an_object_that_is_no_client_is_refused(self, thing: object) -> None:
        with pytest.raises(ConfigurationError, match="takes a client of the openai package"):
            Settings.from_openai(thing)

    def test_the_base_url_of_the_client_may_be_an_object(self) -> None:
        with openai.OpenAI(api_key=KEY, base_url=httpx2.URL("http://h/v1")) as client:
            assert Settings.from_openai(client).base_url == "http://h/v1"


class TestEnvironmentProxy:
    def proxy(self, base_url: str = "http://host.example:8000/v1") -> str | None:
        return Settings.openai(api_key=KEY, base_url=base_url).environment_proxy()

    def test_without_variables_there_is_no_proxy(self) -> None:
        assert self.proxy() is None

    def test_a_proxy_without_a_scheme_is_an_http_proxy_as_in_curl(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("HTTP_PROXY", "proxy:3128")
        assert self.proxy() == "http://proxy:3128"

    @pytest.mark.parametrize("name", ["HTTP_PROXY", "http_proxy", "ALL_PROXY"])
    def test_the_variable_for_the_scheme_or_for_all_schemes_is_used(
        self, monkeypatch: pytest.MonkeyPatch, name: str
    ) -> None:
        monkeypatch.delenv("REQUEST_METHOD", raising=False)
        monkeypatch.setenv(name, "http://proxy:3128")
        assert self.proxy() == "http://proxy:3128"

    def test_a_variable_for_another_scheme_is_ignored(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("HTTPS_PROXY", "http://proxy:3128")
        assert self.proxy() is None
        assert self.proxy("https://host.example/v1") == "http://proxy:3128"

    @pytest.mark.parametrize("exempt", ["host.example", ".example", "host.example:8000", "*"])
    def test_no_proxy_exempts_a_host(self, monkeypatch: pytest.MonkeyPatch, exempt: str) -> None:
        monkeypatch.setenv("HTTP_PROXY", "http://proxy:3128")
        monkeypatch.setenv("NO_PROXY", exempt)
        assert self.proxy() is None

    def test_a_proxy_that_is_not_http_is_refused_without_quoting_it(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("ALL_PROXY", "socks5://u:hunter2@proxy:1080")
        with pytest.raises(ConfigurationError, match="the proxy for http in the environment must be an http") as caught:
            self.proxy()
        assert "hunter2" not in str(caught.value)

    def test_a_proxy_that_was_passed_in_is_checked_too(self) -> None:
        with pytest.raises(ConfigurationError, match="^proxy must be an http"):
            Settings.openai(api_key=KEY, proxy="socks5://proxy")


class TestInsecureTransportWarning:
    """A warning if the key can be read on the network."""

    @pytest.mark.parametrize("kind", [AsyncSession, Session, type("Mine", (AsyncSession,), {})])
    @pytest.mark.parametrize("constructor", ["init", "azure", "from_openai"])
    def test_the_warning_points_to_the_line_that_creates_the_session(self, kind: type, constructor: str) -> None:
        client = openai.OpenAI(api_key=KEY, base_url="http://host.invalid/v1")
        make = {
            "init": lambda: kind(api_key=KEY, base_url="http://host.invalid/v1"),
            "azure": lambda: kind.azure("http://host.invalid", api_key=KEY),
            "from_openai": lambda: kind.from_openai(client),
        }[constructor]
        with pytest.warns(InsecureTransportWarning, match="The key goes to host.invalid in plain text") as caught:
            make()
        assert KEY not in str(caught[0].message)
        assert (caught[0].filename, caught[0].lineno) == (__file__, make.__code__.co_firstlineno)

    @pytest.mark.parametrize(
        ("url", "key"),
        [
            ("https://host.invalid", KEY),
            ("http://localhost:8000", KEY),
            ("http://api.localhost", KEY),
            ("http://127.8.9.1", KEY),
            ("http://[::1]:80", KEY),
            ("http://host.invalid", "any"),
        ],
    )
    def test_no_warning_for_https_for_this_machine_or_for_a_placeholder(self, url: str, key: str) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            AsyncSession(api_key=key, base_url=url)
