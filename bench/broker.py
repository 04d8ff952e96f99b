"""How long the embedded broker takes to start: `python -m bench.broker --json FILE`.

Each run starts a broker on an empty directory, jars present, and ends with its first answer; then it is killed with
SIGKILL and started again on its data, and stopped. The kinds take turns, so that a busy machine is busy for all.
"""

import argparse
import os
import signal
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from bench.report import machine, write_report
from infra import broker
from infra.broker_jars import Java, find_java, packaged_java, system_java


@dataclass
class Kind:
    """A Java with the options that it is run with, and what was measured."""

    name: str
    java: Java
    options: list[str]
    start_s: list[float] = field(default_factory=list)
    restart_s: list[float] = field(default_factory=list)
    stop_s: list[float] = field(default_factory=list)
    memory_mb: list[float] = field(default_factory=list)

    def measure(self) -> None:
        with tempfile.TemporaryDirectory(prefix="freshrank-bench-") as scratch:
            data_dir = Path(scratch).resolve()
            info = self._start(data_dir)
            self.start_s.append(info.started_s)
            self.memory_mb.append(psutil.Process(info.pid).memory_info().rss / 1e6)
            os.kill(info.pid, signal.SIGKILL)
            self.restart_s.append(self._start(data_dir).started_s)
            begun_s = time.perf_counter()
            broker.stop(data_dir)
            self.stop_s.append(time.perf_counter() - begun_s)

    def _start(self, data_dir: Path) -> broker.BrokerInfo:
        return broker._start(data_dir, self.java, self.options, owned=True, timeout_s=60.0)

    def report(self) -> dict[str, object]:
        return {
            "name": self.name,
            "java": self.java.version,
            "start_s": self.start_s,
            "start_s_median": statistics.median(self.start_s),
            "restart_after_kill_s_median": statistics.median(self.restart_s),
            "stop_s_median": statistics.median(self.stop_s),
            "memory_mb_median": statistics.median(self.memory_mb),
        }


def find_kinds() -> list[Kind]:
    """Return what this machine can run."""
    broker.prepare(lambda line: print(line, file=sys.stderr))
    kinds, packaged, system = [], packaged_java(), system_java()
    if packaged is not None:
        kinds.append(Kind("packaged Java with its recorded start", packaged, broker.start_options(packaged)))
        kinds.append(Kind("packaged Java", packaged, broker.PLAIN_OPTIONS))
    if system is not None and system != find_java():
        kinds.append(Kind("system Java", system, broker.start_options(system)))
        kinds.append(Kind("system Java, bytecode verified as by default", system, []))
    return kinds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", default="-", help="where the report goes; - is standard output")
    parser.add_argument("--runs", type=int, default=5, help="starts of each kind")
    arguments = parser.parse_args()
    kinds = find_kinds()
    for _ in range(arguments.runs):
        for kind in kinds:
            kind.measure()
    reports = [kind.report() for kind in kinds]
    first = statistics.median(kinds[0].start_s)
    report = {
        "name": "broker",
        "machine": machine(),
        "runs": arguments.runs,
        "kinds": reports,
        # How many times as long as the first kind each takes.
        "start_ratio_to_first": {kind.name: statistics.median(kind.start_s) / first for kind in kinds},
    }
    write_report(report, arguments.json)


if __name__ == "__main__":
    main()
