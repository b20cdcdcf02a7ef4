"""Motion scores from the result files of VBench-I2V.

VBench pins old versions of its dependencies, so it runs in an environment of its own; here its `*_eval_results.json`
files are read: {dimension: [score, [{"video_path": ..., "video_results": ...}, ...]]}, scores between 0 and 1.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from ..data.sources import files_below
from ..runtime.errors import TrainerError, explained
from ..runtime.text import format_table

#: VBench's name of a dimension -> the scores that it maps to 0 and 1 (its own table for image-to-video).
NORMALISATION = {
    "background_consistency": (0.2615, 1.0),
    "subject_consistency": (0.1462, 1.0),
    "motion_smoothness": (0.7060, 0.9975),
    "i2v_subject": (0.1462, 1.0),
    "i2v_background": (0.2615, 1.0),
    "dynamic_degree": (0.0, 1.0),
}
STRUCTURE = ("background_consistency", "motion_smoothness", "subject_consistency")
FIDELITY = ("i2v_subject", "i2v_background")


def normalised(scores: Mapping[str, float], dimension: str) -> float:
    """Return (score - min) / (max - min) with VBench's own bounds of the dimension."""
    low, high = NORMALISATION[dimension]
    return (scores[dimension] - low) / (high - low)


def motion_score(scores: Mapping[str, float]) -> float:
    """Return the mean of the normalised background consistency, motion smoothness and subject consistency.

    Source: SAM2VideoX, appendix A.1, equation 1.

    Args:
        scores: dimension -> score in 0..1, as VBench writes it.

    Example:
        >>> base = {"background_consistency": 0.9730, "subject_consistency": 0.9443, "motion_smoothness": 0.9817}
        >>> round(100 * motion_score(base), 2)
        94.8
    """
    return sum(normalised(scores, dimension) for dimension in STRUCTURE) / len(STRUCTURE)


def extended_motion_score(scores: Mapping[str, float]) -> float:
    """Return (background + smoothness + subject + 0.5 I2V subject + 0.5 I2V background) / 4, all normalised.

    Source: SAM2VideoX, appendix A.1, equation 2.
    """
    structure = sum(normalised(scores, dimension) for dimension in STRUCTURE)
    return (structure + sum(0.5 * normalised(scores, dimension) for dimension in FIDELITY)) / 4


def read_results(path: Path) -> dict[str, float]:
    """Return dimension -> score, from a result file or from all `*_eval_results.json` files of a folder together.

    Raises:
        TrainerError: nothing there, not VBench's, a score that is none, or two files that disagree on a dimension.
    """
    files = [path]
    if path.is_dir():
        files = [file for file in files_below(path) if file.name.endswith("_eval_results.json")]
    if not files:
        raise TrainerError(f"{path} holds no *_eval_results.json. Give a result file of VBench-I2V or its folder")
    scores: dict[str, float] = {}
    for file in files:
        for dimension, score in _read_file(file).items():
            if scores.setdefault(dimension, score) != score:
                raise TrainerError(f"{path} has two scores for {dimension}. Give one model's results at a time")
    return scores


def score_row(name: str, scores: Mapping[str, float]) -> dict[str, float | str | None]:
    """Return one line of the table, in percent; None where VBench was not asked for what it takes."""
    if missing := [dimension for dimension in STRUCTURE if dimension not in scores]:
        raise TrainerError(f"{name} lacks {', '.join(missing)}: run VBench-I2V for the Motion Score's dimensions too")
    whole = all(dimension in scores for dimension in FIDELITY)
    percent = {dimension: 100 * scores[dimension] if dimension in scores else None for dimension in NORMALISATION}
    return {
        "name": name,
        **percent,
        "motion_score": 100 * motion_score(scores),
        "extended_motion_score": 100 * extended_motion_score(scores) if whole else None,
    }


def report(rows: Sequence[Mapping[str, float | str | None]]) -> str:
    """Return the table as text, and a warning where a row moves less than the first one."""
    heading = {
        "name": "", "background_consistency": "BC", "subject_consistency": "SC", "motion_smoothness": "MS",
        "i2v_subject": "I2V-S", "i2v_background": "I2V-B", "dynamic_degree": "dynamic",
        "motion_score": "Motion", "extended_motion_score": "Ext. Motion",
    }  # fmt: skip
    lines = [list(heading.values())] + [[_cell(row[key]) for key in heading] for row in rows]
    return "\n".join([format_table(lines), *_warnings(rows)])


def _warnings(rows: Sequence[Mapping[str, float | str | None]]) -> list[str]:
    """Warn of rows that move less than the first: a still video is perfectly consistent, and SAM2VideoX leaves them out."""
    first = rows[0]["dynamic_degree"]
    return [
        f"{row['name']} moves less than {rows[0]['name']} (dynamic degree {row['dynamic_degree']:.2f} < {first:.2f}): "
        "its consistency scores are not comparable"
        for row in rows[1:]
        if None not in (first, row["dynamic_degree"]) and row["dynamic_degree"] < first
    ]


def _cell(value: float | str | None) -> str:
    return value if isinstance(value, str) else "-" if value is None else f"{value:.2f}"


def _read_file(file: Path) -> dict[str, float]:
    with explained(f"{file} cannot be read", OSError, way_out="Give a result file of VBench-I2V"):
        text = file.read_text(errors="replace")
    way_out = 'It is JSON such as {"motion_smoothness": [0.98, [...]]}. Give a *_eval_results.json'
    kinds = ValueError, TypeError, AttributeError, LookupError
    with explained(f"{file} is no result file of VBench", *kinds, way_out=way_out):
        scores = {dimension: float(result[0]) for dimension, result in json.loads(text).items()}
    known = {dimension: score for dimension, score in scores.items() if dimension in NORMALISATION}
    for dimension, score in known.items():
        if not 0 <= score <= 1:
            raise TrainerError(f"{file}: {dimension} is {score:g}, and VBench's scores are between 0 and 1")
    return known
