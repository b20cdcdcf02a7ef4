"""The trainer where Python lacks what Unix has."""

import subprocess
import sys

import pytest
from trainer.processes import environment

pytest.importorskip("filelock")

CODE = """
import sys, tempfile, warnings
from pathlib import Path
sys.modules["fcntl"] = None
warnings.simplefilter("ignore")
import lgf_trainer.runtime.files as files
from lgf_trainer.runtime.errors import TrainerError
folder = Path(tempfile.mkdtemp())
with files.claim(folder):
    try:
        files.claim(folder)
    except TrainerError as error:
        print(error)
with files.claim(folder):
    print("free again")
"""


def test_a_folder_is_claimed_without_fcntl():
    done = subprocess.run([sys.executable, "-P", "-c", CODE], env=environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "another run is writing to" in done.stdout and done.stdout.endswith("free again\n")
