"""What a model sees: raw fields and counted priors turned into numbers, one way for training and serving.

Files in reading order (C: core, values in and values out; E: edge, does the IO):

    fields.py C what a field is
    vocabulary.py C which values own a parameter
    priors.py C counts, decay and the smoothed click-through rates made of them
    encode.py C values and priors to rows
"""
