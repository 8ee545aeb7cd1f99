"""The command `openai-cancel`.

Exit status: 0 all stopped, 1 some not stopped, 2 wrong usage, 3 credentials, configuration or the ledger's database,
130 after Ctrl-C, 143 after SIGTERM.
"""

import sys

try:
    from openai_cancel.cli.app import main
except ModuleNotFoundError as _missing:
    sys.stderr.write(f"openai-cancel: {_missing.name} is not installed: pip install 'openai-cancel[cli]'\n")
    raise SystemExit(3) from None

__all__ = ["main"]
