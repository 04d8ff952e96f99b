"""Reads the maps in the packages' docstrings: which files there are, and which of them are core."""

import ast
import re
import tomllib
from pathlib import Path
from typing import Any

from importlinter.contracts.forbidden import ForbiddenContract

ROOT = Path(__file__).resolve().parent.parent
ROOT_PACKAGES: list[str] = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]["importlinter"][
    "root_packages"
]
PACKAGES = sorted(
    init.parent.relative_to(ROOT).as_posix() for name in ROOT_PACKAGES for init in (ROOT / name).rglob("__init__.py")
)
# "    ledger.py C the join of impressions and clicks"
ENTRY = re.compile(r"^ {4}(?P<name>[a-z0-9_]+(?:\.py|/)) (?P<mark>\S+) (?P<what>\S.*)$")


def read_map(package: str) -> dict[str, str]:
    """Return the mark of each file and subpackage that the docstring of `package` lists, in reading order."""
    init = ROOT / package / "__init__.py"
    lines = (ast.get_docstring(ast.parse(init.read_text("utf-8"))) or "").splitlines()
    indented = [line for line in lines if line.startswith("    ")]
    entries = [ENTRY.match(line) for line in indented]
    broken = [line for line, entry in zip(indented, entries, strict=True) if entry is None]
    assert not broken, f"{package}/__init__.py: a line of the map is `    NAME.py MARK what it is`, got {broken}"
    return {entry["name"]: entry["mark"] for entry in entries if entry}


def marked(mark: str) -> list[str]:
    """Return the dotted names of all existing modules that bear `mark`."""
    return sorted(
        f"{package}.{name.removesuffix('.py')}".replace("/", ".")
        for package in PACKAGES
        for name, own in read_map(package).items()
        if own == mark and name.endswith(".py") and (ROOT / package / name).is_file()
    )


class CoreContract(ForbiddenContract):
    """Core files import no edge file and nothing that does IO: a forbidden contract, filled from the maps."""

    type_name = "core"

    def __init__(self, name: str, session_options: dict[str, Any], contract_options: dict[str, Any]) -> None:
        from_maps = {
            "source_modules": marked("C"),
            "forbidden_modules": [*contract_options["forbidden_modules"], *marked("E")],
        }
        super().__init__(name, session_options, contract_options | from_maps)
