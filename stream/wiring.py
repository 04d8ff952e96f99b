"""From settings to slides and ledgers: what backtest and the workers build alike, in one place.

Owns the passing of settings as keyword arguments. Must not import torch: the ledger's process has no use for it (what
is learnt is in stream/plan.py).
"""

from __future__ import annotations

from infra.settings import Settings, token_keys
from models.window import Slides
from stream.blocks import Rules
from stream.ledger import Ledger
from stream.tokens import Tokens


def new_slides(settings: Settings) -> Slides:
    """Return how event time is cut."""
    return Slides(slide_s=settings.window.slide_s, edges=settings.window.edges)


def new_rules(settings: Settings) -> Rules:
    """Return the rules of the ledger."""
    ledger = settings.ledger
    return Rules(
        wait_s=ledger.wait_s,
        grace_s=ledger.grace_s,
        disorder_s=ledger.disorder_s,
        late_clicks=ledger.late_clicks,
        pending_max=ledger.pending_max,
        known_max=ledger.known_max,
        known_bytes_max=ledger.known_bytes_max,
        candidates_max=ledger.candidates_max,
    )


def new_tokens(settings: Settings) -> Tokens | None:
    """Return what signs and checks tokens, None when none are demanded."""
    keys = token_keys(settings)
    return Tokens(keys, settings.ledger.token_ttl_s) if keys else None


def new_ledger(
    partition: int,
    settings: Settings,
    slides: Slides,
    *,
    tokens: Tokens | None = None,
    n_partitions: int | None = None,
) -> Ledger:
    """Return the empty ledger of one partition; as it stands for events of our own, which need no guard."""
    return Ledger(
        partition,
        settings.fields,
        slides,
        rules=new_rules(settings),
        block_rows=settings.ledger.block_rows,
        block_s=settings.ledger.block_s,
        tokens=tokens,
        n_partitions=n_partitions,
    )


def new_guarded_ledger(partition: int, settings: Settings, slides: Slides) -> Ledger:
    """Return the empty ledger of one partition, for events that anybody may have written."""
    tokens, n_partitions = new_tokens(settings), settings.kafka.partitions
    return new_ledger(partition, settings, slides, tokens=tokens, n_partitions=n_partitions)
