"""`freshrank backtest --strategies`: many strategies over one log, each predicting a slide before it learns it.

Files in reading order (C: core, values in and values out; E: edge, does the IO):

    store.py E the log's slides on disk, cut once and shared by all runs
    steps.py E one strategy over those slides: predict, then learn
    choose.py E what the warm-up chooses
    runs.py E one strategy with one seed, in a process of its own
    compare.py E everything together: prepare, run what is missing, report
    report.py E the JSON object, the Markdown table and the plots
"""
