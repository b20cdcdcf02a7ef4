"""The command `lgf`: one subcommand per job, each imported only when it is run."""

import argparse
import importlib
import sys
from collections.abc import Sequence

from . import __version__

#: Subcommand -> (its module, with add_arguments(parser) and run(arguments) -> exit code; what it does).
COMMANDS = {
    "doctor": ("lgf_kernels.doctor", "say what is installed, what runs here and why not; paste it into bug reports"),
    "bench": ("lgf_kernels.bench.cli", "time and memory of the losses, next to what one would run instead"),
    "demo": ("lgf_kernels.demo.cli", "train a tiny video model with and without the loss, and show the difference"),
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
    namespace = parser.parse_args(arguments)
    return importlib.import_module(COMMANDS[namespace.command][0]).run(namespace)


if __name__ == "__main__":
    sys.exit(main())
