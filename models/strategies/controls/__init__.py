"""Outside controls: what others use for the same job, one file each; a backtest compares ours with them.

Files in reading order (C: core, values in and values out; E: edge, does the IO):

    prior_only.py C a logistic regression on the live priors, without a network
    numbers.py C number fields, brought to a size that any method bears
    lightgbm.py C gradient boosted trees on the live priors
    late.py C how much a late click weighs for a learner that knows clicks and non-clicks alone
    best_rate.py C the warm-up chooses a learning rate
    vw.py C Vowpal Wabbit on values and all their pairs
    river.py C river's logistic regression on values
"""
