"""Errors about wrong arguments, in words that say what to do."""

from collections.abc import Iterable

from cyclopts import UnknownOptionError, UnusedCliTokensError

_SUGGESTION = " Did you mean "


def describe_usage(error: Exception) -> str:
    """Return the text of an error about arguments.

    The parser compares options with their dashes, in which all are alike: for `--timeout` it would suggest `--limit`.
    """
    if isinstance(error, UnusedCliTokensError):
        words = f"Unexpected arguments: {' '.join(error.unused_tokens or ())}."
        return f"{words} Put all logs before the options." if "report" in (error.command_chain or ()) else words
    text = f"{error}"
    if isinstance(error, UnknownOptionError):
        options = (name for argument in error.argument_collection if argument.show for name in argument.names)
        closest = _closest(error.token.keyword or error.token.value, options)
        return text.partition(_SUGGESTION)[0] + "".join(f"{_SUGGESTION}{name}?" for name in closest)
    return text


def _closest(option: str, options: Iterable[str]) -> list[str]:
    """Return the option that is most like one that does not exist, or none. It may have been abbreviated."""
    from difflib import get_close_matches  # only an error needs it

    names = {name.lstrip("-"): name for name in options}
    word = option.removeprefix("--").partition("=")[0]
    found = [name for name in names if name.startswith(word)]
    return [names[name] for name in (found if len(found) == 1 else get_close_matches(word, names, n=1))]
