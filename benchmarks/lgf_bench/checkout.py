"""Version of the code that runs, with git or without, and an environment in which other processes run the same code."""

import hashlib
import os
import shutil
import subprocess
from pathlib import Path

import lgf_kernels

#: The checkout, or the folder of the installed packages.
ROOT = Path(lgf_kernels.__file__).parents[1]
#: What the numbers depend on: without git, or beside a commit, a digest of these tells two versions apart.
CODE = ("lgf_kernels/**/*.py", "benchmarks/lgf_bench/**/*.py", "csrc/**/*.*")


def is_checkout() -> bool:
    """Return whether this is a git checkout of the project: an installed package may lie within a checkout of another."""
    return (ROOT / ".git").exists() and shutil.which("git") is not None


def git(*arguments: object) -> subprocess.CompletedProcess:
    return subprocess.run(["git", "-C", ROOT, *arguments], capture_output=True, text=True)


def commit() -> str:
    """Return the commit of the checkout that runs, with "-dirty-" and a digest of the code if that differs from it.

    Elsewhere it is the digest alone, as "files-0123abcd".
    """
    head = git("rev-parse", "--short", "HEAD") if is_checkout() else None
    if head is None or head.returncode:
        return f"files-{digest()}"
    changed = git("status", "--porcelain", "--", *(ROOT / pattern.partition("/**")[0] for pattern in CODE)).stdout
    return head.stdout.strip() + (f"-dirty-{digest()}" if changed else "")


def digest() -> str:
    """Return eight digits that change with any file of the code."""
    whole = hashlib.sha256()
    for file in sorted(file for pattern in CODE for file in ROOT.glob(pattern)):
        whole.update(f"{file.relative_to(ROOT)}\0".encode() + file.read_bytes() + b"\0")
    return whole.hexdigest()[:8]


def environment(place: Path = ROOT) -> dict[str, str]:
    """Return variables under which Python imports the packages of a checkout, whatever is installed."""
    before = filter(None, [os.environ.get("PYTHONPATH")])
    places = (place, place / "python", place / "benchmarks")
    return os.environ | {"PYTHONPATH": os.pathsep.join([*map(str, places), *before])}
