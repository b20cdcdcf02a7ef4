"""Train a tiny video diffusion model with and without the LGF-KL loss, and show the difference.

The main job of this library in miniature: two to four minutes on two CPU cores, nothing is downloaded. Clips of
articulated figures are generated, whose motion is known exactly; an oracle tracker is the teacher; a tiny CogVideoX
with LoRA is trained twice, on the diffusion loss alone and with the LGF-KL term. Then the motion that its features
show is measured on clips it has not seen. With --video, the same on a film of yours, with a teacher computed from its
pixels.

    lgf demo                                  the whole demonstration, into demo-report/
    lgf demo --quick                          seconds: does everything run? (the numbers mean nothing)
    lgf demo --video dog.mp4 --output dog     on a real video
    lgf demo --seed 1 --steps 1200            other clips and another initialisation, longer
    lgf demo --losses all --output study      one student for each alignment loss of the library and each of three seeds,
                                              in a page with a table and a picture; under an hour, and the same
                                              command goes on after an interruption
"""

import argparse
import importlib.util
import sys
from pathlib import Path

from lgf_cli.errors import UserError

from .titles import TITLES

REQUIRED = ("diffusers", "peft", "matplotlib", "tqdm", "av", "yaml")


def parser() -> argparse.ArgumentParser:
    """Return the parser of `lgf demo`."""
    parser = argparse.ArgumentParser(
        prog="lgf demo",
        description=__doc__,
        epilog="losses:\n" + "\n".join(f"  {name:<20}  {title.label}" for name, title in TITLES.items()),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--video", type=Path, metavar="FILE", help="a video, of which a minute is used, to learn from instead of generated clips"
    )  # fmt: skip
    parser.add_argument(
        "--output", type=Path, default=Path("demo-report"), metavar="DIR",
        help="where report.html and motion.png go (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--steps",
        type=positive_integer,
        metavar="N",
        help="training steps of each arm (default: 600; 300 with --losses)",
    )
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of clips, weights and noise (default: 0)")
    parser.add_argument("--quick", action="store_true", help="a few steps on a few clips, to see that it runs")
    parser.add_argument(
        "--losses", nargs="+", metavar="NAME",
        help="compare alignment losses: all, or names of those below; writes which-loss.md, .png and the rows that they are "
        "made of",
    )  # fmt: skip
    parser.add_argument(
        "--backend", metavar="NAME", help="of lgf_kernels (default: the first that can; see lgf doctor)"
    )
    return parser


def main(argv: list[str]) -> int:
    """Run the demo; 0 if it wrote its report, 2 if it could not, with the reason on stderr, 130 if it was interrupted."""
    arguments = parser().parse_args(argv)
    try:
        return _run(arguments)
    except KeyboardInterrupt:
        print("\nlgf demo: interrupted.", file=sys.stderr)
        return 130


def _run(arguments: argparse.Namespace) -> int:
    missing = [name for name in REQUIRED if importlib.util.find_spec(name) is None]
    if missing:
        return _refuse(f'{", ".join(missing)} not installed. Get them with: pip install "lgf-kernels[train]"')
    from lgf_kernels.core.registry import BACKENDS

    if arguments.backend not in (None, *BACKENDS):
        return _refuse(f"--backend must be one of {', '.join(BACKENDS)}; got {arguments.backend!r}")
    if not 0 <= arguments.seed < 2**31:
        return _refuse(f"--seed must be from 0 to 2^31 - 1, got {arguments.seed}")
    if arguments.output.exists() and not arguments.output.is_dir():
        return _refuse(f"--output {arguments.output} is a file. Name a directory")

    from lgf_trainer.data.video import VideoError

    from lgf_kernels import BackendUnavailableError

    try:
        if arguments.losses:
            from .which_loss import compare_losses

            compare_losses(arguments)
        else:
            from .main import demonstrate

            demonstrate(arguments)
    except (VideoError, BackendUnavailableError, UserError, OSError) as error:
        return _refuse(str(error))
    return 0


def _refuse(reason: str) -> int:
    print(f"lgf demo: {reason}", file=sys.stderr)
    return 2


def positive_integer(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number of at least 1, got {text!r}")
    return int(text)
