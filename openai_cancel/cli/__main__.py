"""`python -m openai_cancel.cli` is the command `openai-cancel`."""

from openai_cancel.cli import main

main()
