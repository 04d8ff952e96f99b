"""How a learner that knows clicks and non-clicks alone takes back a non-click: by one more click of the right weight.

Owns that weight. Must not know the learners.

Of n rows alike c were clicked, L of them late. The learner has seen n - c + L non-clicks and c - L clicks; L more
clicks of weight 1 / (1 - p) each, p = c / n, bring their odds to c / (n - c), which is what the final labels say. The
pull on the logit is (1 - p) / (1 - p) = 1 then: just what taking back a non-click and adding a click pulls
(models/losses.py).
"""

from __future__ import annotations

PROBABILITY_MAX = 0.9  # a late click weighs no more than at this rate: 10; chosen by hand


def late_click_weight(probability: float) -> float:
    """Return how many clicks a late one counts as, by what the learner says of the row at present."""
    return 1.0 / (1.0 - min(probability, PROBABILITY_MAX))
