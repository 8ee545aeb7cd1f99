"""Run the command: `python -m openai_cancel.cli`."""

from openai_cancel.cli import main

main()
