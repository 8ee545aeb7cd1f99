"""The command `openai-cancel`.

Exit status: 0 all stopped, 1 some not stopped, 2 wrong usage, 3 credentials, configuration or the ledger's database,
130 after Ctrl-C, 143 after SIGTERM.

# Stop, status and wait

```sh
openai-cancel stop resp_123 resp_456
openai-cancel stop --file ids.txt --log results.jsonl --resume
psql -Atc "select id from runs" | openai-cancel stop - --json
```

`stop` makes sure that responses no longer run. `status` and `stop --dry-run` only check the status. `wait` waits until
responses end; it reads files and resumes like `stop`, and on a terminal it shows how many responses wait, by status,
and the oldest. `cancel` calls the endpoint and shows the answer.

A file contains one id per line, JSON (lines or an array), or CSV with a column `id` or `response_id`. A bad line is
reported with its number and does not affect the other lines.

On a terminal, the command shows its progress. Otherwise it prints a JSON line for each outcome. `--log` appends those
lines to a file, and `--resume` skips the ids that the file shows as stopped, so a run that was killed can continue.
After Ctrl-C, the command finishes the responses under way and quits. A second Ctrl-C quits at once.

# Without ids

On servers that list their responses, such as ogx, Microsoft Foundry and Fireworks:

```sh
openai-cancel list --older-than 1h
openai-cancel stop --running --older-than 1h --metadata team=search
```

`stop --running` first shows how many responses it has found, how old they are and what their metadata says. Then it
asks, because they may be somebody else's. It requires a condition, or `--all`. In scripts, use `--yes`, and try
`--dry-run` first. Afterwards it looks at the list again. What still runs, although the server said that it was
cancelled, is stopped once more.

# Key, server and units

The key comes from the environment, from `--key-file`, or from a prompt (`--ask-key`). It is never an argument, because
other users could read it. `--base-url` and `--azure` set the server. A duration is a number of seconds, or a value such
as `30s`, `15m`, `2h` or `7d`. `--install-completion` installs the completion for your shell.

`pipx run --spec 'openai-cancel[cli]' openai-cancel demo` runs the command without installing it.
"""

import sys

try:
    from openai_cancel.cli.app import main
except ModuleNotFoundError as _missing:
    sys.stderr.write(f"openai-cancel: {_missing.name} is not installed: pip install 'openai-cancel[cli]'\n")
    raise SystemExit(3) from None

__all__ = ["main"]
