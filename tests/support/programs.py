"""Python programs in processes of their own, and what they print."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def flowing(text):
    """Return a text without its boxes and line breaks: where lines end depends on the width of a terminal."""
    return " ".join(re.sub("[─│╭╮╯╰]", " ", text).split())


def json_lines(*arguments):
    """Return the JSON lines of a Python program. It needs its own process: in that of the tests Triton is interpreted."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = os.pathsep.join([str(ROOT / "tests"), os.environ.get("PYTHONPATH", "")])
    environment["TRITON_CACHE_DIR"] = str(
        ROOT / "build" / "triton"
    )  # its default is in the home, which may be read-only
    command = [sys.executable, *map(str, arguments)]
    process = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=ROOT)
    assert process.returncode == 0, process.stderr
    assert "fusion" not in process.stderr, "left to Triton, whose choice differs between versions"
    rows = [json.loads(line) for line in process.stdout.splitlines()]
    assert rows
    return rows
