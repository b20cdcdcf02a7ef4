"""The command `lgf`: one subcommand per job, each imported only when it is run."""

import argparse
import importlib
import sys
from collections.abc import Sequence
from types import ModuleType

from . import __version__

#: Subcommand -> (its module, with add_arguments(parser) and run(arguments) -> exit code; what it does).
COMMANDS = {
    "doctor": ("lgf_kernels.doctor", "say what is installed, what runs here and why not; paste it into bug reports"),
    "bench": ("lgf_kernels.bench.cli", "time and memory of the losses, next to what one would run instead"),
    "demo": ("lgf_kernels.demo.cli", "train a tiny video model with and without the loss, and show the difference"),
}


#: The trainer's: subcommand -> (its module, with main(arguments) -> exit code; what it does).
TRAINER_COMMANDS = {
    "extract": ("lgf_trainer.extract", "videos -> caches of latents, text and teacher logits [train]"),
    "train": ("lgf_trainer.train", "fine-tune CogVideoX with a LoRA and an alignment loss, by a recipe [train]"),
    "sample": ("lgf_trainer.sample", "generate videos with and without a trained LoRA [train]"),
    "eval": ("lgf_trainer.evaluate", "motion scores, FVD and pictures of motion [train]"),
}


def main(argv: Sequence[str] | None = None) -> int:
    arguments = list(sys.argv[1:] if argv is None else argv)
    parser = argparse.ArgumentParser(
        prog="lgf",
        description="Relational alignment losses for video diffusion, without the Gram matrices.",
        epilog="`lgf COMMAND --help` explains a command.",
    )
    parser.add_argument("--version", action="version", version=f"lgf-kernels {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, (module, summary) in COMMANDS.items():
        chosen = arguments[:1] == [name]
        command = commands.add_parser(
            name,
            help=summary,
            description=importlib.import_module(module).__doc__ if chosen else summary,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        if chosen:
            importlib.import_module(module).add_arguments(command)
    for name, (_, summary) in TRAINER_COMMANDS.items():
        commands.add_parser(name, help=summary)
        if arguments[:1] == [name]:
            return run_trainer(f"lgf {name}", TRAINER_COMMANDS[name][0], arguments[1:])
    namespace = parser.parse_args(arguments)
    return importlib.import_module(COMMANDS[namespace.command][0]).run(namespace)


def run_trainer(command: str, module: str, arguments: list[str]) -> int:
    """`main(arguments)` of a module of the trainer. A mistake of the user ends `command` in one line."""
    main = imported(command, module, '"lgf-kernels[train]"').main
    from lgf_trainer.errors import TrainerError

    try:
        return main(arguments)
    except TrainerError as error:
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


if __name__ == "__main__":
    sys.exit(main())
