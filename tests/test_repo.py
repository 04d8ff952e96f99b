"""Rules that hold for the repository as a whole."""

import ast
import re
import subprocess
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
# Written in pieces, so that this file passes its own test.
REGISTRIES = ["py" + "pi.org", "python" + "hosted.org", "repo1." + "maven.org", "/sim" + "ple/"]
# Where somebody's checkout, home or scratch files lay; what is committed must run anywhere.
PLACES = [r"/" + "work/", r"/" + "tmp/bash", r"/" + "root/", r"/" + r"home/[a-z]", r"/" + "Users/[a-z]"]
LINES_MAX = 70
PACKAGES = ["features", "models", "stream", "infra", "freshrank"]


def tracked_files() -> list[Path]:
    """Return the files under version control and those about to be; all files where there is no git."""
    git = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    if git.returncode != 0:
        pytest.skip("not a git checkout: which files are ours is not known")
    return [path for name in git.stdout.split("\0") if name and (path := ROOT / name).is_file()]


def text_of(path: Path) -> str:
    raw = path.read_bytes()
    return "" if b"\0" in raw[:8192] else raw.decode("utf-8", errors="replace")


def offending_lines(pattern: re.Pattern[str]) -> list[str]:
    return [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()[:120]}"
        for path in tracked_files()
        if pattern.search(text := text_of(path))
        for number, line in enumerate(text.splitlines(), start=1)
        if pattern.search(line)
    ]


def test_no_file_names_a_package_registry() -> None:
    assert offending_lines(re.compile("|".join(map(re.escape, REGISTRIES)))) == []


def test_no_file_names_a_place_on_somebodys_machine() -> None:
    assert offending_lines(re.compile(rf"(?<![\w.~-])(?:{'|'.join(PLACES)})")) == []


def test_every_locked_requirement_is_pinned_with_hashes() -> None:
    # A requirement and its hashes are one logical line, continued by backslashes.
    lines = (ROOT / "requirements.lock").read_text("utf-8").replace("\\\n", " ").splitlines()
    requirements = [line for line in lines if line.strip() and not line.lstrip().startswith("#")]
    loose = [line for line in requirements if "==" not in line or "--hash=sha256:" not in line]
    assert requirements
    assert loose == []


def test_every_declared_dependency_is_in_the_lock() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    declared = [
        *project["dependencies"],
        *(name for extra in project["optional-dependencies"].values() for name in extra),
    ]
    names = {re.split(r"[^A-Za-z0-9_.-]", requirement)[0].lower() for requirement in declared}
    locked = set(re.findall(r"^([a-z0-9_.-]+)==", (ROOT / "requirements.lock").read_text("utf-8"), re.MULTILINE))
    assert names <= locked, f"run `make lock`: {sorted(names - locked)} are declared but not locked"


def functions() -> list[tuple[Path, ast.FunctionDef | ast.AsyncFunctionDef]]:
    return [
        (path, node)
        for package in PACKAGES
        for path in sorted((ROOT / package).rglob("*.py"))
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    ]


def test_no_function_is_longer_than_a_screen() -> None:
    long = []
    for path, node in functions():
        documented = ast.get_docstring(node) is not None
        first = node.body[1] if documented and len(node.body) > 1 else node.body[0]
        n_lines = (node.end_lineno or first.lineno) - first.lineno + 1
        if n_lines > LINES_MAX:
            long.append(f"{path.relative_to(ROOT)}:{node.lineno}: {node.name} has {n_lines} lines")
    assert long == [], f"split what is longer than {LINES_MAX} lines by meaning"


def test_no_file_is_a_drawer() -> None:
    drawers = {"utils.py", "util.py", "helpers.py", "common.py", "misc.py"}
    assert [str(path) for path in tracked_files() if path.name in drawers] == []
