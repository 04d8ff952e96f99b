"""Which of an ad's creatives to show: counts, policies, a learnt ranker, and how good a choice was.

Files in reading order (all C: core, values in and values out):

    tally.py C impressions and clicks of every creative, and what they say of its rate
    policies.py C from a tally to the probability of each creative
    metrics.py C sCTR, NSCTR and regret
    ranker.py C a creative ranker that reads the ad's pCTR, and an ad model beside it
    learn.py C one pass over rows: each alone, or both jointly
"""
