"""The ways of an event: from a log or a producer through Kafka to examples, training and serving.

Files in reading order (C: core, values in and values out; E: edge, does the IO):

    events.py C the schema of every record
    tokens.py C proof that an ad was really shown
    ledger.py C the join of impressions and clicks
    ledger_rows.py C what the ledger knows of a request, and the columns in which it leaves
    slabs.py C the values that things were scored on, in columns
    due.py C what falls due when
    blocks.py C settled impressions in columns
    partitioner.py C which partition a key goes to
    dead_letters.py C what a record that could not be used leaves behind
    bridge.py C records of a user's own topics to events, in one order
    simulate.py C a seeded ad world with known truth
    cascade.py C the same with bids, creatives and everything that was considered for each request
    audience.py C how the people of the cascade answer what they are shown
    logs/ E public logs and any CSV, Parquet or NDJSON
    kafka.py E topics and client options
    kafka_log.py E plain readers of a range of a partition
    follow.py E a topic from its beginning, for ever
    outbox.py E records on their way to a topic, in batches
    replay.py E a log into Kafka
    roles.py E what every role shares: cluster, Faust app, life cycle
    wiring.py E settings to slides and ledgers
    plan.py E settings to what is learnt
    families.py E the model families that a trainer learns, and from which topic
    transactions.py E a producer that fences the one before
    ledger_worker.py E the ledger on Kafka
    bridge_worker.py E the bridge on Kafka
    feed.py E each block once, whatever Faust delivers
    announcement.py E what the trainer says on `snapshots`
    explain.py E why a model serves, in words
    commands.py E what people ask of a trainer on `commands`
    child.py E what a process that another one of ours has spawned does first
    user_push.py E users of the live priors into the store
    prior_worker.py E the priors on Kafka
    train_worker.py E the trainer on Kafka
    event_writer.py E events of the ranking service into Kafka
    serve.py E the ranking service on Kafka
    servers.py E several processes of it on one port
    backtest.py E the same code over a file, without Kafka
    compare/ E many strategies over one file, each predicting a slide before it learns it
    leakcheck.py E what leaks from test to train in a log
    ope.py E what other ways of choosing would have been worth on a log
    ab.py E what the arms of an experiment came to
    dlq.py E dead letters: reading them, sending them again
    audit/ E the labels worked out a second time, and compared
    catalog_command.py E ads from a file to the catalog, and what stands there
    models_command.py E which models there are, why one serves, and asking for another
    rows.py E records of any topic as rows that people read
    tables.py E what the command line shows as tables
    demo/ E everything at once, on one screen
    cli.py E the `freshrank` command
"""
