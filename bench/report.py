"""What every measurement's report shares: the machine, and where the JSON goes."""

import json
import os
import platform
import sys
from pathlib import Path
from typing import Any


def machine() -> dict[str, Any]:
    """Return what the figures were measured on, with the load just now: noise is part of a figure."""
    return {"system": platform.platform(), "cores": os.cpu_count(), "load": os.getloadavg()[0]}


def write_report(report: dict[str, Any], target: str) -> None:
    """Write a report to a file, or to standard output when the target is -."""
    text = json.dumps(report, indent=2) + "\n"
    if target == "-":
        sys.stdout.write(text)
    else:
        Path(target).write_text(text)
