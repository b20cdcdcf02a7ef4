"""Imports between the packages of the repository: the library stands below all others, and there is no circle."""

import ast
import re
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

ROOT = Path(__file__).parents[2]
FILES = [file for place in (".", "python", "benchmarks") for file in (ROOT / place).glob("lgf_*/__init__.py")]
PACKAGES = {file.parent.name: file.parent for file in FILES}  # and no folder that pip leaves


def imported(file: Path, package: str) -> Iterator[str]:
    """Yield the modules that a file imports anywhere, in functions too, by their full names."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parents = package.split(".")[: len(package.split(".")) + 1 - node.level] if node.level else []
            module = ".".join([*parents, *filter(None, [node.module])])
            yield from (f"{module}.{alias.name}" for alias in node.names)


def graph(folders: dict[str, Path]) -> dict[str, set[str]]:
    """Return which of these packages each of them imports; `folders` has their folders by their full names."""

    def owner(module: str) -> str | None:
        owners = [name for name in folders if f"{module}.".startswith(f"{name}.")]
        return max(owners, key=len, default=None)

    found = {name: set() for name in folders}
    for name, folder in folders.items():
        for file in folder.rglob("*.py"):
            package = ".".join([name, *file.relative_to(folder).parts[:-1]])
            found[owner(package)] |= {owner(module) for module in imported(file, package)} - {None, owner(package)}
    return found


def test_there_is_no_circle_between_packages():
    found = graph(PACKAGES)
    assert set(found) == {"lgf_kernels", "lgf_cli", "lgf_trainer", "lgf_demo", "lgf_bench"}
    assert found["lgf_kernels"] == set() and found["lgf_cli"] == {"lgf_kernels"}
    assert "lgf_trainer" in found["lgf_demo"] and "lgf_kernels" in found["lgf_bench"]
    list(TopologicalSorter(found).static_order())  # raises CycleError


def test_families_import_the_core_and_not_each_other():
    """Losses over shards are made of theirs, and none of them knows of shards."""
    library = PACKAGES["lgf_kernels"]
    folders = {f"lgf_kernels.{folder.name}": folder for folder in library.glob("[a-z]*/")}
    found = graph(folders)
    assert "lgf_kernels.core" in found.pop("lgf_kernels.distributed") and found.pop("lgf_kernels.core") == set()
    for name, others in found.items():
        assert others == {"lgf_kernels.core"}, name


def test_the_library_names_no_package_that_uses_it():
    for file in PACKAGES["lgf_kernels"].rglob("*.py"):
        assert not re.search(r"lgf_(trainer|demo|bench|cli)", file.read_text()), file
