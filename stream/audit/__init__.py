"""The audit: labels, chains and dead letters worked out from `events` a second time, and compared with what stands.

It shares no code with what it audits, and does things in the slow and obvious way: one request at a time.

Files in reading order (C: core, values in and values out; E: edge, does the IO):

    events.py C the schema of events, read a second time
    story.py C what became of one request
    labels.py C what a ledger must have written about a partition
    blocks.py C the comparison of that with the blocks
    topics.py E what the audit reads
    proof.py E a deployment's topics, proven
"""
