"""All measurements, one after the other: `python -m bench [NAME ...] [--runs N] [--json FILE]`.

Names are the modules of this directory; each can be run alone and has a `--help`. The report holds theirs by name.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

from bench.report import write_report

NAMES = (
    "broker",
    "stages",
    "ledger",
    "ledger_state",
    "bridge",
    "priors",
    "training",
    "vocabulary",
    "freshness",
    "loop",
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"which: {', '.join(NAMES)}; default: all")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--json", default="-", help="where the report goes; - is standard output")
    arguments = parser.parse_args()
    if unknown := sorted(set(arguments.names) - set(NAMES)):
        parser.error(f"NAME must be one of {', '.join(NAMES)}, got {', '.join(unknown)}")
    reports = {}
    with tempfile.TemporaryDirectory() as scratch:
        for name in arguments.names or NAMES:
            print(f"bench {name}", file=sys.stderr)
            file = Path(scratch) / f"{name}.json"
            command = [sys.executable, "-m", f"bench.{name}", "--runs", str(arguments.runs), "--json", str(file)]
            subprocess.run(command, check=True)
            reports[name] = json.loads(file.read_text())
    write_report(reports, arguments.json)


if __name__ == "__main__":
    main()
