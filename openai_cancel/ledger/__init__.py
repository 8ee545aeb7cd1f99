"""A durable record of what runs, so that nothing is left running by a process that dies. Needs the extra `ledger`."""

try:
    from openai_cancel.ledger.ledger import Entry, Ledger
except ModuleNotFoundError as missing:
    raise ModuleNotFoundError(
        f"{missing.name} is not installed: pip install 'openai-cancel[ledger]'", name=missing.name
    ) from None

__all__ = ["Entry", "Ledger"]
