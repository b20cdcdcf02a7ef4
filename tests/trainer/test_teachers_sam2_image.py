"""SAM2's image features: the model's own, on the student's tokens, frame by frame and without a subject."""

from types import SimpleNamespace

import pytest
import torch

pytest.importorskip("diffusers")
pytest.importorskip("transformers")

from lgf_trainer.runtime.errors import TrainerError
from lgf_trainer.teachers.base import Student, Teacher
from lgf_trainer.teachers.sam2_image import Sam2Image
from lgf_trainer.testing import TEACHER_CHANNELS, TEACHER_SIZE, make_tiny_dino, make_tiny_teacher
from torch.nn.functional import interpolate
from transformers import Sam2VideoModel
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

CPU = torch.device("cpu")
SIDE = TEACHER_SIZE // 16
TRUNK_CHANNELS = 64  # of the tiny Hiera's third stage


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return str(make_tiny_teacher(tmp_path_factory.mktemp("sam2")))


@pytest.fixture(scope="module", params=["pyramid", "trunk"])
def teacher(request, folder):
    return Sam2Image(Sam2Image.Options(model=folder, level=request.param), CPU)


def expected(folder, level, video):
    """Features on the encoder's own tokens, all frames at once, by the tracker's own function or by the Hiera."""
    pictures = interpolate((video.double() + 1) / 2, (TEACHER_SIZE,) * 2, mode="bilinear", antialias=True)
    mean, deviation = (torch.tensor(v).view(3, 1, 1) for v in (IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD))
    pixels = ((pictures - mean) / deviation).float()
    model = Sam2VideoModel.from_pretrained(folder).eval()
    with torch.no_grad():
        if level == "trunk":
            return model.vision_encoder.backbone(pixels).intermediate_hidden_states[2]
        tokens = model.get_image_features(pixels, return_dict=True).fpn_hidden_states[-1]
    return tokens.permute(1, 0, 2).unflatten(1, (SIDE, SIDE))


def test_features_are_the_models_own(teacher, folder):
    video = torch.rand(3, 3, 64, 96) * 2 - 1
    features = teacher.features(video, (SIDE, SIDE))
    channels = TRUNK_CHANNELS if teacher.level == "trunk" else TEACHER_CHANNELS
    assert features.shape == (3, SIDE, SIDE, channels) and features.dtype == torch.float32
    torch.testing.assert_close(features, expected(folder, teacher.level, video), rtol=1e-3, atol=1e-4)


def test_the_window_holds_them_on_the_students_tokens_of_the_students_frames(teacher):
    video = torch.rand(9, 3, 64, 96) * 2 - 1
    found = teacher(video, None, Student(range(0, 9, 4), (4, 6)))
    assert list(found) == ["features_sam2_image"] and found["features_sam2_image"].dtype == torch.float16
    whole = teacher.features(video[[0, 4, 8]], (SIDE, SIDE)).permute(0, 3, 1, 2)
    moved = interpolate(whole, (4, 6), mode="bilinear", antialias=True).permute(0, 2, 3, 1)
    torch.testing.assert_close(found["features_sam2_image"].float(), moved, rtol=1e-3, atol=1e-3)


def test_frames_are_looked_at_one_by_one(teacher):
    video = torch.rand(3, 3, 64, 96) * 2 - 1
    assert torch.equal(teacher.features(video, (4, 6))[1:2], teacher.features(video[1:2], (4, 6)))


def test_it_is_found_by_its_name_and_needs_no_subject():
    assert Teacher.find("sam2-image") is Sam2Image and not Sam2Image.needs_subject


def test_weights_are_frozen_in_float32(folder, tmp_path):
    Sam2VideoModel.from_pretrained(folder, dtype=torch.bfloat16).save_pretrained(tmp_path)
    model = Sam2Image(Sam2Image.Options(model=str(tmp_path)), CPU).model
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert not any(p.requires_grad for p in model.parameters()) and not model.training


def test_another_model_is_refused(folder, tmp_path):
    make_tiny_dino(tmp_path / "dino")
    with pytest.raises(TrainerError, match="dino holds a model of type dinov2, and one of type sam2_video is needed"):
        Sam2Image(Sam2Image.Options(model=str(tmp_path / "dino")), CPU)


def test_an_encoder_without_tokens_of_16_pixels_says_which_it_has(folder):
    teacher = Sam2Image(Sam2Image.Options(model=folder), CPU)
    fine = tuple(torch.zeros(1, TEACHER_CHANNELS, side, side) for side in (32, 16))
    teacher.model.forward = lambda frame: SimpleNamespace(fpn_hidden_states=fine)
    with pytest.raises(TrainerError, match=r"pyramid has tokens on grids of 32, 16 a side, and 8 are needed"):
        teacher.features(torch.zeros(1, 3, 64, 96), (4, 6))
