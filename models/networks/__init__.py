"""Architectures, one file each, all with the same call.

Files in reading order (C: core, values in and values out; E: edge, does the IO):

    mlp.py C embeddings and priors into one network
"""
