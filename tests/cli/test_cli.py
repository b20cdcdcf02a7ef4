"""The command `lgf` without its subcommands: no import of torch, and completion by a real shell."""

import os
import shutil
import subprocess
import sys

import pytest
from lgf_cli import completion
from lgf_cli.main import COMMANDS, run

WITHOUT_TORCH = """
import sys
from lgf_cli import main
try:
    code = main(sys.argv[1:])
except SystemExit as stopped:
    code = stopped.code
assert "torch" not in sys.modules, "torch was imported"
sys.exit(code)
"""


@pytest.mark.parametrize(
    "words",
    [
        ["--help"],
        ["--version"],
        ["docter"],
        *([command, "--help"] for command in ("doctor", "extract", "train", "sample", "eval")),
        *(["completion", s] for s in completion.SHELLS),
    ],
)
def test_does_not_import_torch(words):
    done = subprocess.run([sys.executable, "-c", WITHOUT_TORCH, *words], capture_output=True, text=True)
    assert done.returncode == (2 if words == ["docter"] else 0), done.stderr
    assert done.stdout or words == ["docter"]


def test_a_reader_that_leaves_is_one_line():
    """As `head` does; the help is longer than Python's buffer."""
    read, written = os.pipe()
    os.close(read)
    command = [sys.executable, "-c", "import sys; from lgf_cli import main; sys.exit(main())", "train", "--help"]
    done = subprocess.run(command, stdout=written, stderr=subprocess.PIPE, text=True)
    os.close(written)
    assert done.returncode == 1 and done.stderr == "lgf train: what it prints is no longer read\n"


def test_another_broken_pipe_is_not_taken_for_that(monkeypatch):
    """Such as that of a worker which died."""

    def broken(_arguments):
        raise BrokenPipeError("a worker's")

    monkeypatch.setattr(completion, "main", broken, raising=False)
    with pytest.raises(BrokenPipeError, match="a worker's"):
        run("lgf", "lgf_cli.completion", [], "")


def completed(*words):
    """What bash offers for the last of some words."""
    script = completion.bash(completion.words())
    ask = f'{script}\nCOMP_WORDS=({" ".join(map(repr, words))}); COMP_CWORD={len(words) - 1}; _lgf; echo "${{COMPREPLY[@]}}"'
    done = subprocess.run(["bash", "-c", ask], capture_output=True, text=True)
    assert done.returncode == 0 and not done.stderr, done.stderr
    return done.stdout.split()


@pytest.mark.skipif(shutil.which("bash") is None, reason="there is no bash")
def test_bash_completes_commands_options_and_recipes():
    assert completed("lgf", "") == list(COMMANDS)
    assert completed("lgf", "e") == ["extract", "eval"]
    assert completed("lgf", "doctor", "--j") == ["--json"]
    assert completed("lgf", "train", "sam2") == ["sam2videox", "sam2videox-literal"]
    assert completed("lgf", "eval", "v") == ["vbench"]
    assert completed("lgf", "completion", "f") == ["fish"]
    assert completed("lgf", "bench", "--h") == ["--help"]


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_other_shells_read_it(shell, tmp_path):
    if shutil.which(shell) is None:
        pytest.skip(f"there is no {shell}")
    script = tmp_path / "completion"
    script.write_text(
        "autoload -U compinit; compinit -D; " * (shell == "zsh") + completion.SHELLS[shell](completion.words())
    )
    done = subprocess.run(
        [shell, "--no-rcs" if shell == "zsh" else "--no-config", script], capture_output=True, text=True
    )
    assert done.returncode == 0 and not done.stderr, done.stderr
