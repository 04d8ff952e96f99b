"""What a process that another one of ours has spawned does first.

Owns how long it lives and which signals it leaves to its parent. Must not know what it works on.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading


def end_with_parent() -> None:
    """Leave a signal from the keyboard to the parent, and end when it is gone, also when it was killed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def wait() -> None:
        parent.join()
        os._exit(0)

    threading.Thread(target=wait, daemon=True).start()
