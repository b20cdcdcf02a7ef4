"""Examples, numbers and links of the documentation."""

import doctest
import importlib
import json
import re
from pathlib import Path

import pytest
import torch
import yaml
from support.families import families

import lgf_kernels as lgf

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("module", [*(f"{name}.api" for name in families()), "core.registry"])
def test_docstring_examples(module):
    module = importlib.import_module(f"lgf_kernels.{module}")
    results = doctest.testmod(module, optionflags=doctest.NORMALIZE_WHITESPACE)
    assert results.attempted > 0 and results.failed == 0


def test_readme_examples():
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    shapes = dict.fromkeys(("projected", "sam2_forward", "sam2_backward"), torch.randn(1, 3, 4, 5, 6))
    names = {"diffusion_loss": torch.tensor(0.0), **shapes}
    assert len(blocks) >= 4
    for block in blocks:
        exec(block, names)


def test_numbers_in_the_readme_are_those_of_the_results():
    """Every row of the README's table is a row of the recorded results."""
    recorded = set()
    for file in (ROOT / "benchmarks" / "results").rglob("losses.jsonl"):
        for row in map(json.loads, file.read_text().splitlines()):
            if row["status"] == "right":
                recorded.add(f"{row['both']['median_ms']:.1f} ms | {row['peak_bytes'] / 2**20:.1f} MiB")
    shown = re.findall(r"\| ([\d.]+ ms \| [\d.]+ MiB) \|", (ROOT / "README.md").read_text())
    assert len(shown) > 10 and set(shown) <= recorded


def test_the_support_matrix_is_that_of_the_registry():
    import support_matrix

    text = (ROOT / "README.md").read_text()
    assert support_matrix.matrix() in text, "write it anew: python benchmarks/tools/support_matrix.py"
    assert support_matrix.written(text) == text and "| Triton, portable | portable |" in text


def test_the_citation_is_of_this_version():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == lgf.__version__ and citation["license"] == "Apache-2.0"
    assert {"cff-version", "message", "title", "authors"} <= citation.keys()


def test_links_lead_somewhere():
    for document in [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")]:
        for target in re.findall(r"\]\(([^)#]+)\)", document.read_text()):
            assert "://" in target or (document.parent / target).exists(), f"{document.name} links to {target}"
