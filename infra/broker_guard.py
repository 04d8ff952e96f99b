"""The process between an owner and its broker: it starts the broker and ends it when the owner is gone.

Run by path with the standard library alone, never imported: it must start in milliseconds and know nothing of
freshrank. Its standard input is a pipe whose other end only the owner holds, the broker's pid goes to standard output,
and the broker writes to its standard error.

Invariants: the broker does not outlive an owner that dies, however it dies, unless the owner wrote `detach` before.
The owner's death is seen three ways: the pipe closes, this process gets another parent (a forked child of the owner
may still hold the pipe), and on Linux the kernel ends an owned broker if this process itself is killed.
"""

import os
import select
import signal
import subprocess
import sys

POLL_S = 0.2  # how late an exit of the broker may be noticed
GRACE_S = 5.0  # a clean stop takes 0.3 s; after this the broker is killed, which it survives too
PR_SET_PDEATHSIG = 1  # linux/prctl.h


def main(owner_pid: int, mode: str, command: list[str]) -> None:
    """Run `command` until it exits or the owner is gone.

    Args:
        owner_pid: The parent of this process.
        mode: `owned`, or `detachable`: then `detach` on standard input lets the broker live on alone.
        command: The broker's.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the owner, who stops its broker last
    signal.signal(signal.SIGTERM, lambda *_: os.close(0))  # asked to end: as if the owner were gone
    before_exec = _end_with_this_process if mode == "owned" and sys.platform == "linux" else None
    broker = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=2,
        stderr=2,
        preexec_fn=before_exec,  # noqa: PLW1509 - unsafe beside other threads; this process has none
    )
    is_detached = False
    try:
        os.write(1, f"{broker.pid}\n".encode())
        while broker.poll() is None and os.getppid() == owner_pid:
            if select.select([0], [], [], POLL_S)[0]:
                is_detached = os.read(0, 64) == b"detach\n"
                break
    except OSError:  # the owner reads no longer, or SIGTERM closed standard input
        pass
    finally:
        if not is_detached and broker.poll() is None:
            _end(broker)


def _end_with_this_process() -> None:
    """Between fork and exec: let the kernel kill the broker when its parent dies."""
    import ctypes

    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def _end(broker: "subprocess.Popen[bytes]") -> None:
    broker.terminate()
    try:
        broker.wait(GRACE_S)
    except subprocess.TimeoutExpired:
        os.killpg(0, signal.SIGKILL)  # the broker, its helpers and this process


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2], sys.argv[3:])
