"""What a deployment stands on: its configuration, its metrics and the embedded broker.

Files in reading order (C: core, values in and values out; E: edge, does the IO):

    settings.py E the only reader of the TOML file and the environment
    metrics.py E every Prometheus metric
    broker.py E the embedded Kafka
    broker_files.py E the files of the broker's data directory
    broker_jars.py E its jars from a lock file, and a Java to run them
    broker_guard.py E ends it with the process that started it
"""
