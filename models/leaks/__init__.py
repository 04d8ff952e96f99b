"""What leaks from test to train in a log: rows in, findings out.

Files in reading order (C: core, values in and values out; E: edge, does the IO):

    findings.py C what a finding is, and the closed list of their kinds
    table.py C the rows of a log as codes and numbers
    order.py C time: rows, clicks and labels that come too early, a split without a test side
    repeats.py C rows that stand there twice, requests and keys on both sides of the split
    scores.py C how well a field alone tells clicks, by other rows alone
    proxies.py C fields that know the label, and fields that know a sibling's
    scatter.py C whether a field foretells even the chance in later labels
    futures.py C fields that are statistics of the log's own future
"""
