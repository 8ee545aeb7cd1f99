"""The options of the command for the server and the key, and the messages about them."""

import asyncio
import os
import re
import subprocess
from pathlib import Path

import pytest
from conftest import KEY
from terminal import COMMAND

from openai_cancel.emulator import Emulator, Fault

PYTHON_NAMES = re.compile(r"\b(api_key|api_version|base_url|client_session|endpoint|headers|max_\w+|query)\b")
"""Names of arguments of the library, which a user of the command has never seen."""


class TestKey:
    async def test_the_key_can_come_from_a_file(self, run, server: Emulator, create, tmp_path: Path) -> None:
        file = tmp_path / "key"
        file.write_text("sk-from-a-file\n")
        assert (await run("cancel", create(), "--key-file", str(file)))[0] == 0
        assert server.received[0].headers["authorization"] == "Bearer sk-from-a-file"

    @pytest.mark.parametrize(
        ("content", "words"),
        [
            (b"", "is empty"),
            (b" \n", "is empty"),
            (b"\xff", "is not text"),
            (b"OPENAI_API_KEY=sk-1\n", "sets a variable: leave only the key in the file"),
            (b'export MY_KEY = "sk-1"\nexport X=1\n', "sets a variable: leave only the key in the file"),
        ],
    )
    async def test_a_file_without_a_key_is_refused(self, run, tmp_path: Path, content: bytes, words: str) -> None:
        file = tmp_path / "key"
        file.write_bytes(content)
        status, _, err = await run("cancel", "x", "--key-file", str(file))
        assert (status, err) == (3, f"openai-cancel: Cannot read the key: {file} {words}.\n")

    async def test_a_file_with_more_than_a_key_is_refused_by_its_name(self, run, tmp_path: Path) -> None:
        file = tmp_path / "key"
        file.write_text("Bearer sk-of-the-file")
        status, _, err = await run("cancel", "x", "--key-file", str(file))
        assert status == 3
        assert err.startswith(f"openai-cancel: The key in {file} ")
        assert "sk-of" not in err

    @pytest.mark.parametrize(
        ("arguments", "variable"), [([], "OPENAI_API_KEY"), (["--azure", "https://x"], "AZURE_OPENAI_API_KEY")]
    )
    async def test_without_a_key_the_message_names_the_variable_the_options_and_the_demo(
        self, run, monkeypatch: pytest.MonkeyPatch, arguments: list[str], variable: str
    ) -> None:
        monkeypatch.delenv("OPENAI_API_KEY")
        for command in (["cancel", "x"], ["stop", "x"], ["ledger", "release", "x"]):
            status, out, err = await run(*command, *arguments)
            assert (status, out) == (3, "")
            assert err == (
                f"openai-cancel: No API key: set {variable}, or use --key-file or --ask-key. If the server needs no "
                "key, any value will do. To try the command without a key, run: openai-cancel demo\n"
            )

    async def test_with_the_variables_of_azure_the_message_names_its_option(
        self, run, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.delenv("OPENAI_API_KEY")
        monkeypatch.setenv("AZURE_OPENAI_API_KEY", KEY)
        assert "or --ask-key. For Azure OpenAI, add --azure URL. If the server" in (await run("stop", "x"))[2]

    async def test_credentials_in_the_custom_headers_make_a_key_unnecessary(
        self, run, server: Emulator, create, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.delenv("OPENAI_API_KEY")
        monkeypatch.setenv("OPENAI_CUSTOM_HEADERS", "X-Trace: 1\nAuthorization: Bearer sk-of-a-header")
        assert (await run("cancel", create()))[0] == 0
        assert server.received[0].headers["authorization"] == "Bearer sk-of-a-header"


class TestServer:
    async def test_the_base_url_goes_before_its_variable(
        self, run, monkeypatch: pytest.MonkeyPatch, server: Emulator
    ) -> None:
        monkeypatch.setenv("OPENAI_BASE_URL", "http://127.0.0.1:9")
        assert (await run("cancel", "x", "--base-url", server.base_url))[0] == 1
        assert len(server.received) == 1

    async def test_without_a_base_url_the_server_is_openai(self, run, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("OPENAI_BASE_URL")
        monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:9")
        status, _, err = await run("stop", "x", "--deadline", "0.1", "--quiet")
        assert (status, "x unknown" in err) == (1, True)

    async def test_azure_has_a_key_of_its_own(self, run, server: Emulator, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("AZURE_OPENAI_API_KEY", KEY)
        endpoint = server.base_url.removesuffix("/v1")
        await run("cancel", "x", "--azure", endpoint, "--api-version", "2025-03-01-preview")
        assert server.received[0].headers["api-key"] == KEY
        assert "api-version=2025-03-01-preview" in server.received[0].path

    async def test_the_organization_and_the_project_are_sent(self, run, server: Emulator, create) -> None:
        await run("cancel", create(), "--organization", "org-1", "--project", "proj-1")
        headers = server.received[0].headers
        assert (headers["openai-organization"], headers["openai-project"]) == ("org-1", "proj-1")


class TestMessages:
    @pytest.mark.slow
    @pytest.mark.parametrize(
        ("arguments", "words"),
        [
            (["--api-key", "sk-oh-no"], "A key on the command line is visible in the list of processes"),
            (["--key-file", "/none"], "Cannot read the key: /none: No such file or directory."),
            (["--api-version", "x"], "--api-version requires --azure."),
            (["--azure", "https://x", "--base-url", "y"], "--azure cannot be combined with --base-url"),
            (["--ask-key"], "--ask-key requires a terminal"),
            (["--base-url", "ftp://x"], "--base-url must be an http"),
            (["--base-url", "http://[x"], "--base-url is not a URL"),
            (["--base-url", ""], "--base-url must be an http"),
            (["--base-url", "http://u:p@x"], "--base-url must not contain a user name or password: use --key-file or"),
            (["--base-url", "http://x/v1#y"], "--base-url must not contain a fragment"),
            (["--base-url", "http://x/v1/responses/"], "--base-url must be the URL of the API, not of its responses"),
            (["--azure", "x.example"], "--azure must be an http"),
            (["--azure", "https://x", "--api-version", "a\nb"], "--api-version must not contain line breaks"),
            (["--organization", "a\nb"], "--organization must not contain line breaks"),
            (["--project", "a\nb"], "--project must not contain line breaks"),
        ],
    )
    def test_a_setting_that_cannot_work_is_named_by_its_option(self, arguments: list[str], words: str) -> None:
        environment = {**os.environ, "OPENAI_API_KEY": KEY, "AZURE_OPENAI_API_KEY": KEY}
        done = subprocess.run(
            [COMMAND, "stop", "x", *arguments], capture_output=True, text=True, timeout=50, check=False,
            stdin=subprocess.DEVNULL, start_new_session=True, env=environment,
        )  # fmt: skip
        assert (done.returncode, done.stdout, done.stderr.count("\n")) == (3, "", 1)
        assert words in done.stderr
        assert "sk-oh-no" not in done.stderr
        assert not PYTHON_NAMES.search(done.stderr)

    @pytest.mark.parametrize(
        ("variable", "value", "words"),
        [
            ("OPENAI_BASE_URL", "ftp://x", "OPENAI_BASE_URL must be an http"),
            ("OPENAI_BASE_URL", "http://u:p@x", "OPENAI_BASE_URL must not contain a user name or password"),
            ("OPENAI_BASE_URL", "http://x/responses", "OPENAI_BASE_URL must be the URL of the API"),
            ("OPENAI_ORG_ID", "a\nb", "OPENAI_ORG_ID"),
            ("OPENAI_API_KEY", "Bearer sk-of-a-variable", "OPENAI_API_KEY contains a space"),
            ("OPENAI_CUSTOM_HEADERS", "nonsense", "OPENAI_CUSTOM_HEADERS: line 1 has no colon"),
        ],
    )
    async def test_a_setting_that_cannot_work_is_named_by_its_variable(
        self, run, monkeypatch: pytest.MonkeyPatch, variable: str, value: str, words: str
    ) -> None:
        monkeypatch.setenv(variable, value)
        status, out, err = await run("cancel", "x")
        assert (status, out, err.count("\n")) == (3, "", 1)
        assert words in err
        assert "sk-of" not in err

    async def test_a_version_of_azure_that_cannot_be_sent_is_named_by_its_variable(
        self, run, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("AZURE_OPENAI_API_KEY", KEY)
        monkeypatch.setenv("OPENAI_API_VERSION", "a\nb")
        status, _, err = await run("cancel", "x", "--azure", "https://x")
        assert status == 3
        assert err == "openai-cancel: OPENAI_API_VERSION must not contain line breaks or other control characters.\n"

    @pytest.mark.parametrize(
        ("fault", "words"),
        [
            (Fault(status=301, headers={"Location": "https://elsewhere.example/v1"}), "redirects to https://elsewhere"),
            (Fault(raw=b"HTTP/1.1 200 OK\r\nContent-Length: 999999999\r\n\r\n"), "larger than"),
            (Fault(raw=b"HTTP/1.1 404 Not Found\r\nContent-Length: 999999999\r\n\r\n"), "larger than"),
        ],
    )
    async def test_a_message_about_an_answer_names_no_argument_of_the_library(
        self, run, server: Emulator, fault: Fault, words: str
    ) -> None:
        server.faults.append(fault)
        status, _, err = await run("cancel", "x")
        assert (status, words in err) == (1, True)
        assert not PYTHON_NAMES.search(err)

    async def test_a_message_about_a_proxy_names_no_argument_of_the_library(
        self, run, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("HTTP_PROXY", "socks5://127.0.0.1:9")
        status, _, err = await run("cancel", "x", "--base-url", "http://server.example/v1")
        assert (status, err.startswith("openai-cancel: the proxy for http in the environment")) == (3, True)
        assert not PYTHON_NAMES.search(err)


class TestPlainHttp:
    """A base URL that begins with http:// sends the key in plain text, unless the server is on this machine."""

    def cancel(self, base_url: str, **environment: str) -> subprocess.CompletedProcess[str]:
        # The proxy is a closed port of this machine: nothing leaves it.
        proxy = {"HTTP_PROXY": "http://127.0.0.1:9"} if "127.0.0.1" not in base_url else {}
        return subprocess.run(
            [COMMAND, "cancel", "x", "--base-url", base_url], capture_output=True, text=True, timeout=50, check=False,
            env={**os.environ, "OPENAI_API_KEY": KEY, **proxy, **environment},
        )  # fmt: skip

    @pytest.mark.slow
    def test_a_warning_is_one_line_like_other_complaints(self) -> None:
        done = self.cancel("http://server.example/v1")
        warning, error = done.stderr.splitlines()
        assert re.match(r"openai-cancel: warning: The key goes to server\.example in plain text.*https://", warning)
        assert error.startswith("openai-cancel: 'x': ")
        assert (done.returncode, done.stdout) == (1, "")

    @pytest.mark.slow
    def test_the_warning_can_be_made_an_error(self) -> None:
        done = self.cancel("http://server.example/v1", PYTHONWARNINGS="error::UserWarning")
        assert (done.returncode, done.stdout) == (3, "")
        assert re.fullmatch(r"openai-cancel: The key goes to server\.example in plain text.*https://.*\n", done.stderr)

    @pytest.mark.slow
    def test_the_warning_names_no_argument_of_the_library(self) -> None:
        assert not PYTHON_NAMES.search(self.cancel("http://server.example/v1").stderr)

    async def test_a_server_on_this_machine_is_not_warned_of(self, server: Emulator) -> None:
        done = await asyncio.to_thread(self.cancel, server.base_url)
        assert "warning" not in done.stderr
