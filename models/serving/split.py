"""Which arm of an experiment answers a request: a share of the users gets the newest model instead of the champion.

Owns the draw. Must not know how models are loaded or what becomes of the answer; stream/ab.py compares the arms.

Invariants: a user stays in one arm for as long as the experiment has its name and its share, in every process; a larger
share moves nobody away from the newest model; experiments of different names draw independently of each other; what is
said of an answer is what served it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import xxhash

from models.serving.rank import Scorer
from models.serving.schema import Clean

CHAMPION = "champion"
LATEST = "latest"
FALLBACK = "fallback"  # the champion answered in place of the newest model, which was not there


def draw(name: str, user_id: str) -> float:
    """Return where a user stands in an experiment: a number in [0, 1) that looks drawn evenly."""
    return (xxhash.xxh3_64_intdigest(f"{name}\x1f{user_id}".encode()) >> 11) * 2.0**-53


@dataclass(frozen=True)
class Split:
    """An experiment; without a share there is none.

    Attributes:
        name: Of the experiment: with another one users are drawn anew.
        share: Of the users, in [0, 1), that get the newest model.
        user: Name of the field that identifies users.
    """

    name: str = ""
    share: float = 0.0
    user: str = ""

    def choose(self, values: Mapping[str, Clean], champion: Scorer, latest: Scorer | None) -> tuple[str, Scorer]:
        """Return the arm that answers a request, empty without an experiment, and what scores it.

        Args:
            values: Of the request; without a user it is the champion's.
            champion: What serves.
            latest: The newest model, while it can be had.
        """
        if not self.share:
            return "", champion
        user_id = values.get(self.user)
        if not isinstance(user_id, str) or draw(self.name, user_id) >= self.share:
            return CHAMPION, champion
        return (FALLBACK, champion) if latest is None else (LATEST, latest)
