"""The ways of an event: from a log or a producer through Kafka to examples, training and serving.

Files in reading order (C: core, values in and values out; E: edge, does the IO):

    events.py C the schema of every record
    ledger.py C the join of impressions and clicks
    blocks.py C settled impressions in columns
    simulate.py C a seeded ad world with known truth
    logs/ E public logs and any CSV, Parquet or NDJSON
    kafka.py E topics, readers and writers
    replay.py E a log into Kafka
    ledger_worker.py E the ledger on Kafka
    prior_worker.py E the priors on Kafka
    train_worker.py E the trainer on Kafka
    backtest.py E the same code over a file, without Kafka
    demo.py E everything at once, on one screen
    cli.py E the `freshrank` command
"""
