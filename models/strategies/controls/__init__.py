"""Outside controls: what others use for the same job, one file each; a backtest compares ours with them.

Files in reading order (C: core, values in and values out; E: edge, does the IO):

    prior_only.py C a logistic regression on the live priors, without a network
"""
