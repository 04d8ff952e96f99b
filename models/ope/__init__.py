"""Off-policy evaluation: what another way of choosing would have been worth, told from a log of this one.

Files in reading order (C: core, values in and values out):

    candidates.py C every candidate of every row: its score, its posterior
    policies.py C how likely a policy is to choose each candidate
    estimates.py C a policy's click rate from logged propensities, with an interval
"""
