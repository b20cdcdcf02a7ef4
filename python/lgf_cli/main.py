"""Dispatch of the subcommands, each imported only when it runs."""

import argparse
import importlib
import os
import select
import sys
from collections.abc import Sequence
from importlib import metadata
from types import ModuleType
from typing import NamedTuple

from .errors import UserError


class Command(NamedTuple):
    """A subcommand: its MODULE:FUNCTION (arguments) -> exit code (MODULE alone: main), its summary, and the extra it needs."""

    module: str
    summary: str
    extra: str = ""

    @property
    def needs(self) -> str:
        """The requirement to install for it."""
        return f'"lgf-kernels[{self.extra}]"' if self.extra else "lgf-kernels"


COMMANDS = {
    "doctor": Command("lgf_cli.doctor", "report what is installed, what runs here, and why the rest does not"),
    "verify": Command("lgf_cli.verify", "check and time every backend on this machine against plain PyTorch"),
    "bench": Command("lgf_bench.cli", "measure time and memory of the losses and of the alternatives", "bench"),
    "demo": Command("lgf_demo.cli", "train a tiny video model with and without the loss, and show the difference"),
    "extract": Command("lgf_trainer.commands:extract", "videos -> caches of latents, text and teacher logits", "train"),
    "train": Command(
        "lgf_trainer.commands:train", "fine-tune CogVideoX or Wan2.1 with an alignment loss, by a recipe", "train"
    ),
    "apply": Command(
        "lgf_trainer.commands:apply", "add what a trained module makes of windows to their cache", "train"
    ),
    "sample": Command("lgf_trainer.commands:sample", "generate videos with and without a trained LoRA", "train"),
    "eval": Command("lgf_trainer.evaluate", "motion scores, FVD, pictures of motion, measures of encoders", "train"),
    "completion": Command("lgf_cli.completion", "print the script that completes these words in a shell on Tab"),
}


def main(argv: Sequence[str] | None = None) -> int:
    arguments = list(sys.argv[1:] if argv is None else argv)
    if arguments and arguments[0] in COMMANDS:
        name, *rest = arguments
        return run(f"lgf {name}", COMMANDS[name].module, rest, COMMANDS[name].needs)
    parser().parse_args(arguments)  # help, the version, or an error for an unknown command
    raise AssertionError("unreachable")


def parser() -> argparse.ArgumentParser:
    """Return the parser of the first word; each command parses the rest."""
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
    """Run a MODULE:FUNCTION, or `main` of a MODULE.

    A user error, a missing package, Ctrl-C and a reader that leaves end with a message of one line.
    """
    module, _, function = module.partition(":")
    main = getattr(imported(command, module, needs), function or "main")
    try:
        return main(arguments)
    except ModuleNotFoundError as error:
        raise missing(command, error, needs) from error
    except UserError as error:
        raise SystemExit(f"{command}: {error}") from error
    except KeyboardInterrupt:
        print(f"\n{command}: stopped. What is there is kept: the same command goes on from there", file=sys.stderr)
        return 130
    except BrokenPipeError as error:
        if not _reader_left():
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # where the rest goes that Python writes at its end
        raise SystemExit(f"{command}: what it prints is no longer read") from error


def _reader_left() -> bool:
    """Return whether nobody reads standard output any more, as after `lgf train --help | head`."""
    output = select.poll()
    output.register(1, 0)
    return any(event & select.POLLERR for _, event in output.poll(0))


def imported(command: str, module: str, needs: str) -> ModuleType:
    """Import the module of a command. A missing package ends with a message of one line."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise missing(command, error, needs) from error


def missing(command: str, error: ModuleNotFoundError, needs: str) -> SystemExit:
    """Return the end of a command that lacks a package."""
    package = (error.name or "").partition(".")[0]
    return SystemExit(f"{command}: {package} is not installed. Get it with: pip install {needs}")
