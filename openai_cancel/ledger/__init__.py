"""A durable record of running responses, so that none is left behind by a process that dies.

Needs the extra `ledger`: `pip install 'openai-cancel[ledger]'`.
"""

try:
    from openai_cancel.ledger.blocking import BlockingLedger
    from openai_cancel.ledger.entry import Entry
    from openai_cancel.ledger.ledger import Ledger
except ModuleNotFoundError as _missing:
    raise ModuleNotFoundError(
        f"{_missing.name} is not installed: pip install 'openai-cancel[ledger]'", name=_missing.name
    ) from None

__all__ = ["BlockingLedger", "Entry", "Ledger"]
