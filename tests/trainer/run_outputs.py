"""What a training run leaves, to compare it with another."""

import json
from pathlib import Path

import torch
from safetensors.torch import load_file

LOSSES = ("diffusion", "alignment", "gradient")


def metrics(output: Path) -> list[dict]:
    return [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]


def losses(output: Path) -> list[list[float]]:
    return [[row[name] for name in LOSSES] for row in metrics(output)]


def weights(output: Path) -> dict[str, torch.Tensor]:
    return load_file(output / "pytorch_lora_weights.safetensors") | load_file(output / "projector.safetensors")


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
