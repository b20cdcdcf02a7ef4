"""DINO's features of frames: the model's own patch features, of pictures whose patches are the student's tokens."""

import re

import pytest
import torch

pytest.importorskip("diffusers")
pytest.importorskip("transformers")

from lgf_trainer.runtime.errors import TrainerError
from lgf_trainer.teachers.dino import TYPES, Dino
from lgf_trainer.testing import DINO_CHANNELS, make_tiny_dino, make_tiny_teacher
from torch.nn.functional import interpolate
from transformers import AutoModel
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

CPU = torch.device("cpu")
GRID = (4, 6)
BEFORE = {"dinov2": 1, "dinov2_with_registers": 5, "dinov3_vit": 5}  # tokens before those of the patches


def load(folder):
    return Dino(Dino.Options(model=folder), CPU)


@pytest.fixture(scope="module", params=TYPES)
def kind(request):
    return request.param


@pytest.fixture(scope="module")
def folder(kind, tmp_path_factory):
    return str(make_tiny_dino(tmp_path_factory.mktemp(kind), kind=kind))


def test_features_are_the_models_own(kind, folder):
    video = torch.rand(3, 3, 64, 96) * 2 - 1
    features = load(folder).features(video, GRID)
    assert features.shape == (3, *GRID, DINO_CHANNELS) and features.dtype == torch.float32
    patch = 16 if kind == "dinov3_vit" else 14
    pictures = interpolate((video.double() + 1) / 2, (4 * patch, 6 * patch), mode="bilinear", antialias=True)
    mean, deviation = (torch.tensor(v).view(3, 1, 1) for v in (IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD))
    with torch.no_grad():
        tokens = AutoModel.from_pretrained(folder)(((pictures - mean) / deviation).float()).last_hidden_state
    assert tokens.shape[1] == BEFORE[kind] + 24
    expected = tokens[:, BEFORE[kind] :].reshape(3, *GRID, DINO_CHANNELS)
    torch.testing.assert_close(features, expected, rtol=1e-4, atol=1e-4)


def test_a_token_is_a_patch(kind, folder):
    """Without attention and MLP, what changes in a patch changes its token and no other."""
    dino = load(folder)
    for name, weight in dino.model.named_parameters():
        if "layer_scale" in name:
            torch.nn.init.zeros_(weight)
    patch = dino.model.config.patch_size
    video = torch.rand(2, 3, 4 * patch, 6 * patch) * 2 - 1
    other = video.clone()
    other[1, :, 2 * patch : 3 * patch, 5 * patch :] *= -1
    changed = (dino.features(video, GRID) - dino.features(other, GRID)).abs().amax(-1) > 1e-4
    assert changed.nonzero().tolist() == [[1, 2, 5]]


def test_frames_are_looked_at_one_by_one(folder):
    dino, video = load(folder), torch.rand(3, 3, 64, 96) * 2 - 1
    assert torch.equal(dino.features(video, GRID)[1:2], dino.features(video[1:2], GRID))


def test_weights_are_float32_whatever_they_were_stored_in(folder, tmp_path):
    AutoModel.from_pretrained(folder, dtype=torch.bfloat16).save_pretrained(tmp_path)
    model = load(str(tmp_path)).model
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert not any(p.requires_grad for p in model.parameters()) and not model.training


def test_another_model_or_none_is_refused(tmp_path):
    make_tiny_teacher(tmp_path / "sam2")
    message = "sam2 holds a model of type sam2_video, and one of type dinov3_vit or dinov2 or dinov2_with_registers is"
    with pytest.raises(TrainerError, match=message):
        load(str(tmp_path / "sam2"))
    (tmp_path / "empty").mkdir()
    for missing in ("empty", "gone"):
        with pytest.raises(TrainerError, match=re.escape(f"cannot be loaded from {tmp_path}/{missing}")):
            load(str(tmp_path / missing))
