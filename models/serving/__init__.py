"""The ranking service: is handed snapshots, priors and a way to publish events; knows no Kafka.

Files in reading order (C: core, values in and values out; E: edge, does the IO):

    schema.py C what a request and an answer are
    bodies.py C bytes from outside to checked values
    ad_table.py C the ads that may be shown, column by column, and what of them a request asks for
    catalog.py C the ads that can be named by id
    rank.py C candidates to probabilities to an order
    explain.py C why an ad got its score
    prerank.py C thousands of candidates to hundreds
    creatives.py C which creative an ad is shown with
    explore.py C which ads are shown although others look better
    split.py C which arm of an experiment answers
    users.py E what is known of a user beyond what the caller says
    samples.py C a few recent requests, for new snapshots to prove themselves on
    chooser.py E when it is chosen: beside the ad ranker, before or behind it
    work.py C a request under way
    record.py C what was answered and on which values, as the log is to have it
    pipeline.py E one request from candidates to answer
    refresh.py E brings new snapshots in
    latest.py E brings the newest model in beside the champion
    keys.py C who may ask
    admission.py E the queue in front of ranking
    routes.py C the routes, their codes and types
    openapi.py C the routes and types as a document
    connection.py E an end to every wait for the other side
    app.py E the HTTP side
"""
