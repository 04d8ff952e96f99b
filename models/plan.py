"""The plan: everything that decides what is learnt, as one plain value.

Owns its checks. Must not know where it comes from or how it is carried out.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Literal

from features.fields import Field
from models.gate import GateRules, Rule
from models.losses import Objective
from models.networks.network import Way
from models.snapshot import FeaturePrior


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Everything that decides what is learnt; infra/settings.py says what each means.

    Attributes:
        prior: Which counts a row sees.
        ways: How they get into the network.
        objective: What the network minimises.
        learns: Each slide, or those of the warm-up alone: then only counts go on.
        rows_max: How many rows of a slide are scored and learnt; 0: all.
        is_gated: Whether the champion is chosen by the gate; else each new model serves at once.
        warmup_s: Slides that end within this time of the first settled row are warm-up.
        window_s: How far back the strategy `last-window` learns; 0: the newest slide.
        lookback_s: How far before a slide a row of it may have been shown and still be given its counts: the longest
            wait for a click plus the disorder allowed. Rows shown earlier are counted, not learnt.
    """

    fields: tuple[Field, ...]
    family: str
    network: str
    dim: int
    hidden: tuple[int, ...]
    admit_min: float
    forget_min: float
    values_max: int
    half_lives_s: tuple[float, ...]
    levels: tuple[str, ...]
    evidence_min: float
    counts_max: int
    prior: FeaturePrior
    ways: tuple[Way, ...]
    objective: Objective
    learns: Literal["always", "warmup"]
    is_gated: bool
    learning_rate: float
    embedding_learning_rate: float
    batch_rows: int
    rows_max: int
    seed: int
    device: str
    precision: str
    warmup_s: float
    window_s: float
    lookback_s: float
    alpha: float
    margin: float
    buckets: int
    evidence_clip: float
    clicks_min: int
    calibration: tuple[float, float]
    rule: Rule
    shift_max: float
    slice_margin: float
    harm_max: float
    rollback_wait: int

    def __post_init__(self) -> None:
        """Check what would let a row see its own label."""
        if not self.lookback_s > 0.0:
            raise ValueError(f"lookback_s must be > 0, got {self.lookback_s}; give it the longest wait for a click")

    @property
    def gate(self) -> GateRules:
        """The gate's part of it."""
        return GateRules(**{field.name: getattr(self, field.name) for field in dataclasses.fields(GateRules)})
