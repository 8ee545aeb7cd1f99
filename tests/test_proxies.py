"""Which URLs go through the proxy that the environment names."""

import shutil
import subprocess

import pytest
from yarl import URL

from openai_cancel import AsyncSession, ConfigurationError
from openai_cancel.proxies import environment_proxy, is_exempt

PROXY = "http://127.0.0.1:9"  # a closed port

CASES = [
    # entry, host and port, exempt, whether every version of curl says the same
    ("*", "host.example", True, True),
    ("other.example, *", "host.example", True, False),
    ("", "host.example", False, True),
    (",", "host.example", False, True),
    (".", "host.example", False, False),
    ("example.com", "example.com", True, True),
    ("example.com", "www.example.com", True, True),
    ("example.com", "wwwexample.com", False, True),
    ("example.com", "example.com.evil.example", False, True),
    ("EXAMPLE.com", "www.example.COM", True, True),
    ("example.com.", "example.com", True, True),
    ("example.com", "example.com.", True, True),
    (".example.com", "www.example.com", True, True),
    (".example.com", "example.com", True, True),
    ("*.example.com", "www.example.com", True, False),
    ("*.example.com", "a.b.example.com", True, False),
    ("*.example.com", "example.com", False, False),
    ("*.example.com", "wwwexample.com", False, False),
    ("a.example b.example", "b.example", True, True),
    ("a.example,b.example", "b.example", True, True),
    ("localhost", "localhost", True, True),
    ("example.com:8000", "example.com:8000", True, False),
    ("example.com:8000", "www.example.com:8000", True, False),
    ("example.com:8000", "example.com:8001", False, False),
    ("example.com:80", "example.com", True, False),
    ("10.1.2.3", "10.1.2.3", True, True),
    ("10.1.2.3", "10.1.2.33", False, True),
    ("10.1.2.3:8000", "10.1.2.3:8000", True, False),
    ("10.1.2.3:8000", "10.1.2.3:8001", False, False),
    ("2.3", "10.1.2.3", False, True),
    ("10.0.0.0/8", "10.1.2.3", True, True),
    ("10.1.0.9/16", "10.1.2.3", True, True),
    ("10.0.0.0/8", "11.1.2.3", False, True),
    ("10.0.0.0/8:8000", "10.1.2.3:8000", True, False),
    ("10.0.0.0/8", "host.example", False, True),
    ("10.0.0.0/64", "10.1.2.3", False, True),
    ("::1", "[::1]", True, True),
    ("[::1]", "[::1]", True, False),
    ("0:0:0:0:0:0:0:1", "[::1]", True, False),
    ("[::1]:8000", "[::1]:8000", True, False),
    ("[::1]:8000", "[::1]:8001", False, False),
    ("::1", "[::2]", False, True),
    ("fd00::/8", "[fd12::1]", True, False),
    ("[fd00::/8]", "[fd12::1]", True, False),
    ("[fd00::]/8", "[fd12::1]", True, False),
    ("fd00::/8", "[fe80::1]", False, True),
    ("fd00::/8", "10.1.2.3", False, True),
    ("http://example.com", "example.com", True, False),
    ("all://*.example.com", "www.example.com", True, False),
    ("https://example.com", "example.com", False, False),
    ("bücher.example", "xn--bcher-kva.example", True, False),
    ("xn--bcher-kva.example", "bücher.example", True, False),
    ("[", "host.example", False, True),
    ("[::1", "[::1]", False, False),
]


@pytest.mark.parametrize(("entries", "host", "exempt"), [case[:3] for case in CASES])
def test_an_entry_of_no_proxy_exempts_its_hosts_and_no_others(entries: str, host: str, *, exempt: bool) -> None:
    assert is_exempt(URL(f"http://{host}/v1"), entries) is exempt


@pytest.mark.parametrize("name", ["no_proxy", "NO_PROXY"])
@pytest.mark.parametrize(("entries", "host", "exempt"), [case[:3] for case in CASES[:6]])
def test_the_variable_may_be_in_lower_or_upper_case(
    monkeypatch: pytest.MonkeyPatch, name: str, entries: str, host: str, *, exempt: bool
) -> None:
    monkeypatch.setenv("ALL_PROXY", PROXY)
    monkeypatch.setenv(name, entries)
    assert environment_proxy(f"http://{host}/v1") == (None if exempt else PROXY)


def test_a_variable_in_lower_case_takes_precedence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "http://other:1")
    monkeypatch.setenv("https_proxy", PROXY)
    monkeypatch.setenv("NO_PROXY", "*")
    monkeypatch.setenv("no_proxy", "other.example")
    assert environment_proxy("https://host.example/v1") == PROXY


def test_a_proxy_that_does_not_matter_is_not_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALL_PROXY", "socks5://proxy:1080")
    monkeypatch.setenv("NO_PROXY", "host.example")
    assert environment_proxy("https://host.example/v1") is None
    with pytest.raises(ConfigurationError, match="must be an http"):
        environment_proxy("https://other.example/v1")


@pytest.mark.parametrize("credentials", ["a%3Ab:c", "пользователь:c", "a:%D0%BF"])
def test_credentials_that_http_cannot_send_are_refused(monkeypatch: pytest.MonkeyPatch, credentials: str) -> None:
    proxy = f"http://{credentials}@proxy.example:3128"
    monkeypatch.setenv("HTTPS_PROXY", proxy)
    with pytest.raises(ConfigurationError, match="the proxy for https in the environment has a user name with a colon"):
        environment_proxy("https://host.example/v1")
    with pytest.raises(ConfigurationError, match="proxy has a user name with a colon or credentials outside of Latin"):
        AsyncSession(api_key="any", proxy=proxy)


@pytest.mark.parametrize("credentials", ["a:b:c", "a%5Cb:%25%40", "a:\u00e9", "a", ":b"])
def test_other_credentials_are_accepted(monkeypatch: pytest.MonkeyPatch, credentials: str) -> None:
    proxy = f"http://{credentials}@proxy.example:3128"
    monkeypatch.setenv("HTTPS_PROXY", proxy)
    assert environment_proxy("https://host.example/v1") == proxy


@pytest.mark.parametrize("exempt", [False, True])
def test_without_variables_the_settings_of_the_system_count(monkeypatch: pytest.MonkeyPatch, exempt: object) -> None:
    """Windows and macOS have some."""
    monkeypatch.setattr("openai_cancel.proxies.getproxies", lambda: {"https": PROXY})
    monkeypatch.setattr("openai_cancel.proxies.proxy_bypass", lambda host: exempt and host == "host.example:443")
    assert environment_proxy("https://host.example/v1") == (None if exempt else PROXY)


@pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl")
@pytest.mark.parametrize(("entries", "host", "exempt"), [case[:3] for case in CASES if case[3]])
def test_curl_agrees(monkeypatch: pytest.MonkeyPatch, entries: str, host: str, *, exempt: bool) -> None:
    """Its own resolver is told that each name is an address of this machine; nothing listens there."""
    monkeypatch.setenv("NO_PROXY", entries)
    done = subprocess.run(
        ["curl", "--silent", "--verbose", "--max-time", "0.2", "--connect-to", "::127.0.0.1:10", "--proxy", PROXY,
         f"http://{host}/v1"],
        capture_output=True, text=True, timeout=50, check=False,
    )  # fmt: skip
    assert ("127.0.0.1:9" not in done.stderr and "port 9 " not in done.stderr) is exempt
