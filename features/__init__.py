"""What a model sees: raw fields and counted priors turned into numbers, one way for training and serving.

Files in reading order (C: core, values in and values out; E: edge, does the IO):

    fields.py C what a field is
    encode.py C values to keys
    priors.py C impressions and clicks of every key, decayed
    point_in_time.py C what had settled when each row was shown
    posteriors.py C the click-through rates that counts say, as inputs of a network
    strength.py C how far a rate leans on its parent, as would have predicted best
    crosses.py C which pairs of fields are worth a prior of their own, as a warm-up's rows say
    live_priors.py C what the live priors publish, and what its readers make of it
    vocabulary.py C which values own a parameter
    feature_repo/ E what Feast is told of users
    store.py E users in Feast, in SQLite or Redis
"""
