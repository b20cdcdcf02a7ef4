"""The programs of examples/, run as a reader would, on tiny random models."""

import importlib.util
import io
import json
import re
import runpy
import sys
from contextlib import redirect_stdout
from pathlib import Path

import pytest
import torch

pytest.importorskip("diffusers")
pytest.importorskip("peft")
pytest.importorskip("accelerate")

from lgf_trainer.testing import make_tiny_dino, make_tiny_pipeline, make_tiny_wan
from safetensors.torch import load_file
from trainer.training_data import make_cache, wan_window

import lgf_kernels as lgf

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"


@pytest.fixture(autouse=True)
def place(monkeypatch):
    """The folder of a program before all others, as Python has it, the CPU alone, and a fresh accelerator."""
    from accelerate.state import AcceleratorState

    monkeypatch.syspath_prepend(EXAMPLES)
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


def run(name: str, *options: object) -> list[str]:
    """Run an example and return the lines that it printed."""
    printed = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(printed):
        patch.setattr(sys, "argv", [name, *map(str, options)])
        runpy.run_path(str(EXAMPLES / name), run_name="__main__")
    return printed.getvalue().splitlines()


def numbers(lines: list[str], name: str) -> list[float]:
    """Return the values of a loss by step."""
    return [float(found[1]) for line in lines if (found := re.search(rf"{name} ([\d.]+)", line))]


@pytest.fixture(scope="module")
def cogvideox(tmp_path_factory):
    """The folder of a text-to-video CogVideoX and of a cache for it."""
    folder = tmp_path_factory.mktemp("cogvideox")
    make_tiny_pipeline(folder / "model", image_to_video=False)
    make_cache(folder / "cache", windows=2)
    return folder


def trains_a_lora(name: str, folder: Path, output: Path, *options: object) -> dict[str, torch.Tensor]:
    """Check that the losses of an example are finite and the alignment's falls; return the tensors that it wrote."""
    common = ("--model", folder / "model", "--cache", folder / "cache", "--output", output, "--block", 1, "--batch", 2)
    lines = run(name, *common, "--steps", 12, "--rate", 3e-3, *options)
    diffusion, alignment = numbers(lines, "diffusion"), numbers(lines, "alignment")
    assert len(diffusion) == len(alignment) == 12 and sum(alignment[-3:]) < sum(alignment[:3])
    (file,) = output.glob("*.safetensors")
    return load_file(file)


def test_a_lora_of_cogvideox(cogvideox, tmp_path):
    lora = trains_a_lora("cogvideox_lora.py", cogvideox, tmp_path, "--precision", "no")
    assert any("lora_B" in name and tensor.abs().sum() > 0 for name, tensor in lora.items())


def test_a_lora_of_cogvideox_with_rotary_embeddings(cogvideox, tmp_path):
    config = cogvideox / "model" / "transformer" / "config.json"
    before = config.read_text()
    config.write_text(json.dumps(json.loads(before) | {"use_rotary_positional_embeddings": True}))
    try:
        trains_a_lora("cogvideox_lora.py", cogvideox, tmp_path)
    finally:
        config.write_text(before)


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_a_lora_of_wan(tmp_path, precision):
    make_tiny_wan(tmp_path / "model")
    make_cache(tmp_path / "cache", windows=2, window=wan_window)
    lora = trains_a_lora("wan_lora.py", tmp_path, tmp_path / "lora", "--precision", precision)
    assert any("lora_B" in name and tensor.abs().sum() > 0 for name, tensor in lora.items())


def test_a_trainer_with_specifications(cogvideox, tmp_path):
    trained = trains_a_lora("finetrainers_style.py", cogvideox, tmp_path)
    assert any("lgf_projector" in name for name in trained) and any("lora_B" in name for name in trained)


def test_a_loop_with_accelerate_alone():
    alignment = numbers(run("accelerate_loop.py", "--steps", 40), "alignment")
    assert len(alignment) == 40 and sum(alignment[-4:]) < sum(alignment[:4])


def test_gram_anchoring(tmp_path):
    pytest.importorskip("torchvision")
    from PIL import Image

    (tmp_path / "images").mkdir()
    for number in range(3):
        Image.fromarray(torch.randint(256, (80, 96, 3), dtype=torch.uint8).numpy()).save(
            tmp_path / f"images/{number}.png"
        )
    make_tiny_dino(tmp_path / "dino")
    words = ("--model", tmp_path / "dino", "--images", tmp_path / "images", "--output", tmp_path / "tuned")
    lines = run("gram_anchoring.py", *words, "--patches", 4, "--batch", 3, "--steps", 3)
    assert len(numbers(lines, "gram")) == 3 and min(numbers(lines, "gram")) > 0
    assert (tmp_path / "tuned" / "model.safetensors").exists()


def test_a_cache_of_a_teacher(tmp_path):
    from lgf_demo.playground import moving_square
    from lgf_trainer.data.export import encode_video

    (tmp_path / "clip.mp4").write_bytes(encode_video(moving_square(9).numpy(), 8, {}))
    make_tiny_dino(tmp_path / "dino")
    words = (tmp_path / "clip.mp4", "--teacher", tmp_path / "dino", "--grid", 4, 6, "--frames", 9)
    assert run("cache_teacher.py", *words, "--output", tmp_path / "logits") == ["clip: (8, 4, 6, 49)"]
    cache = load_file(tmp_path / "logits" / "clip.safetensors")["forward"]
    student = torch.randn(1, 9, 4, 6, 8, requires_grad=True)
    for direction in ("forward", "backward"):
        lgf.lgf_kl_loss_from_logits(student, cache[None], direction=direction, logits_direction="forward").backward()
    assert student.grad.isfinite().all()


@pytest.mark.skipif(
    importlib.util.find_spec("lightning") is None, reason="lightning is not installed: pip install lightning"
)
def test_lightning(cogvideox, tmp_path):
    common = ("--model", cogvideox / "model", "--cache", cogvideox / "cache", "--output", tmp_path, "--block", 1)
    lines = run("lightning_module.py", *common, "--batch", 2, "--steps", 2, "--precision", "32-true")
    assert "alignment" in lines[-1]
    (checkpoint,) = tmp_path.rglob("*.ckpt")
    names = torch.load(checkpoint, weights_only=True)["state_dict"]
    assert all("lora" in name or "projector" in name for name in names)


def test_the_guide_names_every_example():
    guide = (ROOT / "docs" / "integration.md").read_text()
    assert set(re.findall(r"\(\.\./examples/(\w+\.py)\)", guide)) == {file.name for file in EXAMPLES.glob("*.py")}
