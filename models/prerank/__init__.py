"""Pre-ranking: from thousands of candidates to hundreds, learnt from the entire cascade.

Files in reading order (all C: core, values in and values out):

    trunk.py C what every pre-ranker shares: a half per request, a half per ad, and what joins them
    ecm.py C one perceptron
    ecmm.py C blocks and gates that route between them
    tower.py C two towers, a control
    cold.py C gated fields, a control
    inputs.py C the vectors of a candidate's values
    heads.py C what the outputs mean and what is learnt from which candidates
    build.py C from a name to a pre-ranker
    task.py C candidates in, the chance to be exposed and clicked out, learnt slide by slide
    recall.py C how good a pre-ranker is
"""
