"""The guide for other trainers: what it adds to them runs, and trains what it says."""

import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

pytest.importorskip("diffusers")
pytest.importorskip("peft")
pytest.importorskip("accelerate")

from accelerate import Accelerator
from diffusers import CogVideoXTransformer3DModel
from lgf_trainer import BlockCapture, Projector
from peft import LoraConfig
from trainer.training_data import random_window

import lgf_kernels as lgf

GUIDE = (Path(__file__).parents[2] / "docs" / "integration.md").read_text()


def block(heading):
    """The code under a heading, for the tiny model."""
    code = re.search(rf"### {heading}.*?```python\n(.*?)```", GUIDE, re.DOTALL)[1]
    added = [line for line in code.splitlines() if line and "theirs" not in line and "import" not in line]
    assert len(added) <= 11
    return code.replace("[24]", "[1]").replace("Projector(3072, frames=49)", "Projector(32, 16, (8,), 9, 4)")


def parts(tiny_place):
    transformer = CogVideoXTransformer3DModel.from_pretrained(tiny_place / "model", subfolder="transformer")
    transformer.requires_grad_(False)
    window = {name: tensor[None] for name, tensor in random_window(0).items()}
    return transformer, window


def trained(transformer, projector):
    loras = [p for name, p in transformer.named_parameters() if "lora_B" in name and "blocks.0" in name]
    assert len(loras) == 4
    return all(p.grad is not None and p.grad.abs().sum() > 0 for p in [*loras, *projector.parameters()])


def test_the_diffusers_example(tiny_place):
    transformer, window = parts(tiny_place)
    config = LoraConfig(r=2, target_modules=["to_q", "to_k", "to_v", "to_out.0"])
    names = {
        "transformer": transformer, "transformer_lora_config": config, "accelerator": Accelerator(cpu=True), "lgf": lgf,
        "transformer_parameters_with_lr": {"params": []}, "noisy_model_input": torch.randn(1, 3, 8, 8, 12), "num_frames": 3,
        "prompt_embeds": window["text"], "timesteps": torch.tensor([500]), "height": 8, "width": 12, "loss": torch.zeros(1),
        "batch": {"forward": window["teacher_forward"], "backward": window["teacher_backward"]},
    }  # fmt: skip
    code = block("diffusers' example").replace('"backward"]])', '"backward"]], window=3)')
    exec(code, names)
    names["loss"].backward()
    assert trained(transformer, names["projector"]) and len(names["params_to_optimize"]) == 2


def test_finetrainers(tiny_place):
    transformer, window = parts(tiny_place)
    transformer.add_adapter(LoraConfig(r=2, target_modules=["to_q", "to_k", "to_v", "to_out.0"]))
    transformer.to(torch.float32)

    def forward():
        return (
            transformer(torch.randn(1, 3, 8, 8, 12), window["text"], torch.tensor([500]), return_dict=False)[0],
            None,
            None,
        )

    names = {
        "self": SimpleNamespace(transformer=transformer, model_specification=SimpleNamespace(forward=forward)),
        "latent_model_conditions": {"teachers": [window["teacher_forward"], window["teacher_backward"]]},
        "BlockCapture": BlockCapture, "Projector": Projector, "lgf": lgf, "inputs": {}, "loss": torch.zeros(1),
    }  # fmt: skip
    exec(block("finetrainers").replace("teachers)", "teachers, window=3)"), names)
    names["loss"].backward()
    assert trained(transformer, transformer.lgf_projector)
