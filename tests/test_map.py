"""Each package's docstring is its map: its files in reading order, each marked core or edge."""

import pytest

from tests.maps import PACKAGES, ROOT, ROOT_PACKAGES, read_map


def on_disk(package: str) -> set[str]:
    here = ROOT / package
    files = {path.name for path in here.glob("*.py") if path.name != "__init__.py"}
    return files | {f"{path.parent.name}/" for path in here.glob("*/__init__.py")}


@pytest.mark.parametrize("package", PACKAGES)
def test_the_map_lists_the_files_that_exist(package: str) -> None:
    listed, found = set(read_map(package)), on_disk(package)
    assert listed == found, (
        f"the map in {package}/__init__.py is not what is there: "
        f"add a line for {sorted(found - listed)}, remove the line of {sorted(listed - found)}"
    )


@pytest.mark.parametrize("package", PACKAGES)
def test_every_mark_is_core_or_edge(package: str) -> None:
    wrong = {name: mark for name, mark in read_map(package).items() if mark not in {"C", "E"}}
    assert not wrong, f"{package}/__init__.py: a mark is C (core) or E (edge), got {wrong}"


@pytest.mark.parametrize("package", PACKAGES)
def test_a_subpackage_is_core_only_if_all_of_it_is(package: str) -> None:
    for name, mark in read_map(package).items():
        if name.endswith("/"):
            inside = set(read_map(f"{package}/{name[:-1]}").values())
            assert mark == "E" or "E" not in inside, f"{package}/{name} holds edge files, so its mark is E"


def test_a_directory_with_code_is_a_package() -> None:
    directories = {path.parent for name in ROOT_PACKAGES for path in (ROOT / name).rglob("*.py")}
    bare = sorted(str(path.relative_to(ROOT)) for path in directories if not (path / "__init__.py").exists())
    assert not bare, f"add an __init__.py with a map to {bare}"
