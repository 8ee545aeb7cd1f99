"""`python -m openai_cancel` is the command `openai-cancel`."""

from openai_cancel.cli import main

main()
