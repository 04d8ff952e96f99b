"""What users' own code imports; nothing in here imports the packages that run freshrank.

Files in reading order (C: core, values in and values out; E: edge, does the IO):
"""
