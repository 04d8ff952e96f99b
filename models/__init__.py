"""Models that keep learning: what they are, how one slide changes them, and whether the change may serve.

Files in reading order (C: core, values in and values out; E: edge, does the IO):

    window.py C which settled impressions make a slide, in which order
    evaluate.py C how good predictions were
    evidence.py C what is known of a difference, with bounds that hold at every look
    drift.py C whether the world has changed for what serves
    gate.py C promote, hold or reject
    shadow.py C the former champion in the shadow, and rollback
    networks/ C one file per architecture
    losses.py C what a network is asked to minimise
    snapshot.py C everything that is known after a slide, as one value
    batch.py C keys and counts to tensors, to mini-batches and to predictions
    train.py C one pass over a slide
    examples.py C the rows of a slide with what had settled when each was shown
    plan.py C everything that decides what is learnt
    task.py C the seam between the step of learning and the kinds of models that take it
    click_task.py C the click model as one of them
    skew.py C what was served, against the same recomputed as training does
    update.py C one slide from start to end: score, gate, train
    prerank/ C from thousands of candidates to hundreds: learnt as another task
    strategies/ C what a backtest compares: ours, and outside controls
    comparison.py C how strategies compare on the same rows
    arms.py C how the two arms of an experiment compare
    ope/ C what another way of choosing would have been worth
    creatives/ C which of an ad's creatives to show
    leaks/ C what leaks from test to train in a log
    registry.py E snapshots on disk
    swap.py E the reference to what serves now
    serving/ E requests to ranked answers
"""
