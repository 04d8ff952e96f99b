"""The whole loop, from the log to the gate, through Kafka: `python -m bench.loop --json FILE`.

Runs `freshrank demo` and keeps what it says of speed and memory: every process on the same machine, the broker too.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from bench.report import machine, write_report


def run_demo(config: str | None, rows: int | None) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as scratch:
        report = Path(scratch) / "demo.json"
        command = [sys.executable, "-m", "stream.cli", "demo", *([config] if config else []), "--json", str(report)]
        command += ["--rows", str(rows)] if rows else []
        subprocess.run(command, check=True, stdout=sys.stderr)
        result: dict[str, Any] = json.loads(report.read_text())
        return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", nargs="?", default=None, help="default: MovieLens-1M")
    parser.add_argument("--rows", type=int, default=None)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--json", default="-", help="where the report goes; - is standard output")
    arguments = parser.parse_args()
    runs = [run_demo(arguments.config, arguments.rows) for _ in range(arguments.runs)]
    figures = [{key: run[key] for key in ("seconds", "events_per_s", "memory_bytes_max")} for run in runs]
    report = {
        "name": "loop",
        "log": runs[0]["name"],
        "machine": machine(),
        "events": runs[0]["events"],
        "runs": figures,
        "medians": {key: statistics.median(one[key] for one in figures) for key in figures[0]},
        "memory_measure": runs[0]["memory_measure"],
        "stages_s": {key: statistics.median(run["stages"][key] for run in runs) for key in runs[0]["stages"]},
        # Where the time of the processors goes, by process.
        "cpu_s": {
            name: statistics.median(run["processes"][name]["cpu_s"] for run in runs) for name in runs[0]["processes"]
        },
    }
    write_report(report, arguments.json)


if __name__ == "__main__":
    main()
