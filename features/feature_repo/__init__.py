"""What Feast is told: one entity, the user, and one view of what the live priors know of users.

Files in reading order (C: core, values in and values out; E: edge, does the IO):

    definitions.py E the entity, the view and the push source of a deployment
"""
