"""What a finding is, and the closed list of their kinds.

Owns the kinds and what to do about each. Must not know how anything is found.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

Kind = Literal[
    "time_order",
    "early_click",
    "zero_delay",
    "short_wait",
    "no_test",
    "repeated_rows",
    "split_request",
    "shared_key",
    "label_proxy",
    "sibling_label",
    "future_statistic",
    "normaliser",
]

NEXT: dict[Kind, str] = {
    "time_order": "sort the log by time, or set [ledger] disorder_s to the disorder that is meant",
    "early_click": "mend the click times: they must be on the clock of the impressions",
    "zero_delay": "give clicks their own later time: a label must settle after its row was shown",
    "short_wait": 'raise [ledger] wait_s, or set late_clicks = "correct"',
    "no_test": "shorten [window] warmup_s or the slides, so that slides are left to be tested on",
    "repeated_rows": "keep each impression once",
    "split_request": "give the rows of a request its one time, or name the columns that make a request",
    "shared_key": "keep the rows of each of these keys on one side of the split",
    "label_proxy": "leave the field out: it is known only after the click",
    "sibling_label": "leave the field out: it is known only after the request's other rows have settled",
    "future_statistic": "count it from what had settled before each row was shown, or leave the field out",
    "normaliser": "take the scale from the training side alone, or give the raw values",
}


@dataclass(frozen=True)
class Finding:
    """One thing that leaks.

    Attributes:
        kind: Which of the closed list.
        field: The field, column or setting; empty when it is the rows themselves.
        evidence: The figures that it rests on.
        message: What was found, for people.
    """

    kind: Kind
    field: str
    evidence: Mapping[str, object]
    message: str

    @property
    def next(self) -> str:
        """What to do about it."""
        return NEXT[self.kind]
