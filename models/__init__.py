"""Models that keep learning: what they are, how one slide changes them, and whether the change may serve.

Files in reading order (C: core, values in and values out; E: edge, does the IO):

    window.py C which settled impressions make a slide, in which order
    batch.py C rows to tensors
    networks/ C one file per architecture
    losses.py C what a network is asked to minimise
    train.py C one pass over a slide
    evaluate.py C how good predictions were
    gate.py C promote, hold or reject
    update.py C one slide from start to end: score, gate, train
    registry.py E snapshots on disk
    swap.py E the reference to what serves now
    serving/ E requests to ranked answers
"""
