"""A durable record of what runs, so that nothing is left running by a process that dies. Needs the extra `ledger`."""

try:
    from openai_cancel.ledger.ledger import Entry, Ledger
except ModuleNotFoundError as _missing:
    raise ModuleNotFoundError(
        f"{_missing.name} is not installed: pip install 'openai-cancel[ledger]'", name=_missing.name
    ) from None

__all__ = ["Entry", "Ledger"]
