"""The demo: everything at once, on one screen, from a log to served rankings and what the learning was worth.

And the closed loop: people of a simulated world ask, click, and are answered by what was learnt from it.

Files in reading order (C: core, values in and values out; E: edge, does the IO):

    command.py E from start to end: the state directory, signals, the broker, the JSON
    setup.py E the log and the demo's own configuration
    deployment.py E the roles: started, fed, watched and mended
    run.py E a log from its first event to the last slide learnt
    closed_loop.py E hours of people who ask and click, each dealt with before the next
    visitors.py E those people: calls, reports and ticks
    static.py E the service as it was at the first visitor
    arms.py C what three ways of choosing got from the same people
    processes.py E child processes that never outlive us
    watcher.py E what the topics say
    requests.py E three real requests to the ranking service
    comparison.py E the models that went on learning against one that did not
    report.py E what a run amounts to, in tables, in a picture and as one object
    loop_report.py E what a closed loop amounts to
    panel.py E what is shown, from plain values
    screen.py E a terminal, or none
    plot.py E the picture
"""

from stream.demo.command import run_closed_loop, run_demo

__all__ = ["run_closed_loop", "run_demo"]
