"""The pages of `--help`, from the docstrings of the commands."""

import inspect

from cyclopts import App

ROOT_EPILOGUE = """\
Exit status:
  0    every response has ended
  1    some responses may still be running, or something else failed
  2    the arguments are wrong
  3    the credentials, the configuration or the ledger's database do not work
  130  interrupted by Ctrl-C
  143  ended by SIGTERM

Environment variables:
  OPENAI_API_KEY, OPENAI_BASE_URL, OPENAI_ORG_ID, OPENAI_PROJECT_ID
  OPENAI_CUSTOM_HEADERS
  AZURE_OPENAI_API_KEY, OPENAI_API_VERSION
  OPENAI_CANCEL_LEDGER

openai-cancel COMMAND --help has examples for each command."""
"""The end of the page of `openai-cancel` itself, the only page with the exit statuses."""

_EPILOGUE = "Exit statuses and environment variables: openai-cancel --help"
_NO_DOCUMENT = "No description, since Python runs with -OO or PYTHONOPTIMIZE=2."
_FENCE = "```"


def lay_out(app: App) -> None:
    """Lay out the page of every command below an app, from the docstring of its function.

    The fenced block of the docstring becomes the examples at the end of the page, and its paragraphs are filled.
    """
    for name in app:
        command = app[name]
        if name.startswith("-"):
            continue
        lay_out(command)
        document = inspect.getdoc(command.default_command) if command.default_command else command.help
        text = (document or _NO_DOCUMENT).partition("\nArgs:")[0]
        before, _, rest = text.partition(_FENCE)
        examples, _, after = rest.partition(_FENCE)
        command.help = "\n\n".join(" ".join(each.split()) for each in f"{before}{after}".split("\n\n") if each.strip())
        command.help_epilogue = f"{_as_code(examples)}{_EPILOGUE}"


def _as_code(examples: str) -> str:
    lines = "".join(f"  {line}\n" for line in examples.strip().splitlines())
    return f"Examples:\n{lines}\n" if lines else ""
