"""One subcommand per job, each imported only when it is run."""

import argparse
import importlib
import sys
from collections.abc import Sequence
from importlib import metadata
from types import ModuleType
from typing import NamedTuple

from .errors import UserError


class Command(NamedTuple):
    """A subcommand: its module, which has main(arguments) -> exit code, what it does, and the extra that it needs."""

    module: str
    summary: str
    extra: str = ""

    @property
    def needs(self) -> str:
        """What to install for it."""
        return f'"lgf-kernels[{self.extra}]"' if self.extra else "lgf-kernels"


COMMANDS = {
    "doctor": Command("lgf_cli.doctor", "say what is installed, what runs here and why not; paste it into bug reports"),
    "bench": Command("lgf_bench.cli", "time and memory of the losses, next to what one would run instead"),
    "demo": Command("lgf_demo.cli", "train a tiny video model with and without the loss, and show the difference"),
    "extract": Command("lgf_trainer.extract", "videos -> caches of latents, text and teacher logits", "train"),
    "train": Command(
        "lgf_trainer.train", "fine-tune CogVideoX with a LoRA and an alignment loss, by a recipe", "train"
    ),
    "sample": Command("lgf_trainer.sample", "generate videos with and without a trained LoRA", "train"),
    "eval": Command("lgf_trainer.evaluate", "motion scores, FVD and pictures of motion", "train"),
    "completion": Command("lgf_cli.completion", "print what makes a shell complete these words with Tab"),
}


def main(argv: Sequence[str] | None = None) -> int:
    arguments = list(sys.argv[1:] if argv is None else argv)
    if arguments and arguments[0] in COMMANDS:
        name, *rest = arguments
        return run(f"lgf {name}", COMMANDS[name].module, rest, COMMANDS[name].needs)
    parser().parse_args(arguments)  # help, the version, or an error: there is no such command
    raise AssertionError("unreachable")


def parser() -> argparse.ArgumentParser:
    """Of the first word alone; what follows it is each command's own."""
    result = argparse.ArgumentParser(
        prog="lgf",
        description="Relational alignment losses for video diffusion, without the Gram matrices.",
        epilog="`lgf COMMAND --help` explains a command.",
    )
    result.add_argument("--version", action="version", version=f"lgf-kernels {metadata.version('lgf-kernels')}")
    commands = result.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, command in COMMANDS.items():
        commands.add_parser(name, help=command.summary + (f" [{command.extra}]" if command.extra else ""))
    return result


def run(command: str, module: str, arguments: list[str], needs: str) -> int:
    """`main(arguments)` of a module. A mistake of the user, a missing package and Ctrl-C end `command` in one line."""
    main = imported(command, module, needs).main
    try:
        return main(arguments)
    except UserError as error:
        raise SystemExit(f"{command}: {error}") from error
    except KeyboardInterrupt:
        print(f"\n{command}: stopped. What is there is kept: the same command goes on from there", file=sys.stderr)
        return 130


def imported(command: str, module: str, needs: str) -> ModuleType:
    """A module that imports more than the library itself does. What is not here ends `command` in one line."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise SystemExit(f"{command}: {error.name} is not installed. Get it with: pip install {needs}") from error
