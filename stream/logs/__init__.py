"""Logs in: files of raw rows to requests, impressions and clicks in the order of their event times.

Files, in reading order (C core, E edge):

    columns.py C one raw column to the type that its role asks for; what cannot be used gets the rule it broke
    requests.py C which rows are one request, and in what order they stand
    files.py E the formats: Parquet, CSV and NDJSON in chunks
    clicks.py C when a click came: at the log's time, or at one drawn
    histories.py C what a user clicked, or left, before each row: fields that a log implies
    reader.py E a log bigger than memory as normalised frames, joins and counts included
    arrivals.py C rows to events: clicks at their own time, ticks at the slide boundaries
    ads.py E the ads of the joined files, those never shown included, for the catalog
    source.py E a deployment's log as events: the one call that the backtest and the replay share
    fetch.py E public logs from the package index, checked by hash
    simulated.py E the simulated world as a file

`source.read_arrivals` is where the backtest and the replay begin.
"""
