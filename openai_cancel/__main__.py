"""Run the command: `python -m openai_cancel`."""

from openai_cancel.cli import main

main()
