"""Strategies: ways to keep a click model up to date, which a backtest compares.

Files in reading order (C: core, values in and values out; E: edge, does the IO):

    strategy.py C the interface: predict a slide, then learn it
    ours.py C those of the network that learns, one small function each
    restart.py C the same network, trained from the start with each slide
    tuning.py C what may be chosen about ours, by the warm-up
    controls/ C what others use, one file each
    build.py C from a name to a strategy
"""
