"""Network architectures, one file each; what they share is one call: (embedded, share, dense, start) to logits.

Files in reading order (C: core, values in and values out; E: edge, does the IO):

    logistic.py C the base under every network: logistic regression on the counts
    network.py C what all share: embeddings and counts in, one logit on top of the base's out
    mlp.py C hidden layers
    dcn.py C crosses learnt explicitly, beside hidden layers
    build.py C from a name in the settings to a network
"""
