"""Programs that tests compile, once for all processes that tests run in."""

import fcntl
import os
import subprocess
from collections.abc import Callable
from pathlib import Path


def run(*command) -> None:
    """Run a compiler, without the sanitizer that `make sanitize` loads before Python."""
    environment = {name: value for name, value in os.environ.items() if name != "LD_PRELOAD"}
    process = subprocess.run([str(word) for word in command], capture_output=True, text=True, env=environment)
    assert process.returncode == 0, process.stdout + process.stderr


def once(output: Path, build: Callable[[], None]) -> Path:
    """Call `build`, which writes `output`, unless another process has done so or is doing so."""
    with open(f"{output}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not output.exists():
            build()
    return output


def shared_folder(name: str, tmp_path_factory, config) -> Path:
    """Return a new folder. Where tests run in several processes, these share one above those of their own."""
    if not hasattr(config, "workerinput"):
        return tmp_path_factory.mktemp(name)
    place = tmp_path_factory.getbasetemp().parent / name
    place.mkdir(exist_ok=True)
    return place
