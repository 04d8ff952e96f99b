"""What users' own code imports; nothing in here imports the packages that run freshrank.

Files in reading order (C: core, values in and values out; E: edge, does the IO):

    client.py E asks the ranking service
    calls.py C one call as steps: what is sent, when again, what an answer means
    schema.py C requests, answers, and how a call can fail
"""
