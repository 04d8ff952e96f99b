"""From settings to slides and ledgers: what backtest and the workers build alike, in one place.

Owns the passing of settings as keyword arguments. Must not import torch: the ledger's process has no use for it (what
is learnt is in stream/plan.py).
"""

from __future__ import annotations

from infra.settings import Settings
from models.window import Slides
from stream.ledger import Ledger


def new_slides(settings: Settings) -> Slides:
    """Return how event time is cut."""
    return Slides(slide_s=settings.window.slide_s, edges=settings.window.edges)


def new_ledger(partition: int, settings: Settings, slides: Slides) -> Ledger:
    """Return the empty ledger of one partition."""
    rules = settings.ledger
    return Ledger(
        partition,
        settings.fields,
        slides,
        wait_s=rules.wait_s,
        grace_s=rules.grace_s,
        disorder_s=rules.disorder_s,
        block_rows=rules.block_rows,
        block_s=rules.block_s,
    )
