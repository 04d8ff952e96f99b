"""The demo: everything at once, on one screen, from a log to served rankings and what the learning was worth.

Files in reading order (C: core, values in and values out; E: edge, does the IO):

    command.py E from start to end: the state directory, signals, the broker, the JSON
    setup.py E the log and the demo's own configuration
    run.py E the roles from the first event to the last slide learnt
    processes.py E child processes that never outlive us
    watcher.py E what the topics say
    requests.py E three real requests to the ranking service
    comparison.py E the models that went on learning against one that did not
    report.py E what a run amounts to, in tables, in a picture and as one object
    panel.py E what is shown, from plain values
    screen.py E a terminal, or none
    plot.py E the picture
"""

from stream.demo.command import run_demo

__all__ = ["run_demo"]
