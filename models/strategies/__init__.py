"""Strategies: ways to keep a click model up to date, which a backtest compares.

Files in reading order (C: core, values in and values out; E: edge, does the IO):

    ours.py C those of the network that learns, one small function each
"""
