"""`lgf eval`: motion scores from VBench's results, FVD with a network of yours, pictures of motion."""

import json
from pathlib import Path
from typing import Annotated

import tyro

from . import vbench as scores
from .cache import write_atomically

Output = Annotated[Path | None, tyro.conf.arg(metavar="FILE")]


def main(arguments: list[str]) -> int:
    """Run `lgf eval ARGUMENTS`; 0 when it has printed or written what was asked for."""
    tyro.extras.subcommand_cli_from_dict(
        {"vbench": vbench},
        prog="lgf eval",
        description=__doc__,
        args=arguments,
    )
    return 0


def vbench(results: tyro.conf.Positional[list[Path]], /, output: Output = None) -> None:
    """Motion and Extended Motion Score (SAM2VideoX, appendix A.1) from result files of VBench-I2V, in percent.

    Run VBench in an environment of its own (it pins old packages), for the dimensions subject_consistency,
    background_consistency, motion_smoothness, i2v_subject, i2v_background and dynamic_degree. BC, SC, MS, I2V-S and
    I2V-B are its scores as they are; the two means take them normalised by VBench's own table. A model that moves less
    than the first one is marked: still videos are consistent for nothing.

        lgf eval vbench base/ lora/ sam2videox/

    Args:
        results: result files, or folders of *_eval_results.json, one for each model; the base model first.
        output: also write the numbers there, as JSON.
    """
    rows = [scores.score_row(_name(path), scores.read_results(path)) for path in results]
    if output is not None:
        write_atomically(output, json.dumps(rows, indent=1).encode())
    print(scores.report(rows))


def _name(path: Path) -> str:
    return path.resolve().name.removesuffix(".json").removesuffix("_eval_results")
