"""VideoMAE's features: the raw last block on VideoREPA's grid of positions."""

import pytest
import torch

pytest.importorskip("diffusers")
pytest.importorskip("transformers")

from lgf_trainer.runtime.errors import TrainerError
from lgf_trainer.teachers.base import Student
from lgf_trainer.teachers.videomae import VideoMae
from torch.nn.functional import interpolate
from transformers import Dinov2Config, VideoMAEConfig, VideoMAEModel

CPU = torch.device("cpu")
CONFIG = dict(
    hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, image_size=64, num_frames=4
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    torch.manual_seed(0)
    place = tmp_path_factory.mktemp("videomae")
    VideoMAEModel(VideoMAEConfig(**CONFIG, use_mean_pooling=False)).save_pretrained(place)
    return str(place)


def test_features_are_those_of_the_last_block_without_the_norm(folder):
    """As VideoREPA computes them: positions resized over the picture and over time, the first frame left out."""
    teacher = VideoMae(VideoMae.Options(model=folder), CPU)
    video = torch.rand(9, 3, 96, 144) * 2 - 1
    features = teacher(video, None, Student(range(9), (6, 9)))["features_videomae"]
    assert features.shape == (4, 2, 3, 32) and features.dtype == torch.float16

    model = VideoMAEModel.from_pretrained(folder).eval()
    assert model.layernorm is not None  # which would be applied behind the last block
    embeddings, kept = model.embeddings, []
    table = embeddings.position_embeddings.reshape(2, 4, 4, 32).permute(0, 3, 1, 2)
    table = interpolate(table, (2, 3), mode="bicubic").permute(1, 0, 2, 3)[None]
    table = interpolate(table, (4, 2, 3), mode="trilinear")[0].permute(1, 2, 3, 0).reshape(1, 24, 32)
    pictures = interpolate(video[1:], (32, 48), mode="bicubic", antialias=False) / 2 + 0.5
    mean, deviation = (torch.tensor(v).view(3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    embeddings.position_embeddings = table
    embeddings.patch_embeddings.image_size = (32, 48)
    model.encoder.layer[-1].register_forward_hook(lambda *arguments: kept.append(arguments[-1]))
    with torch.no_grad():
        model(((pictures - mean) / deviation)[None])
    block = kept[0] if isinstance(kept[0], torch.Tensor) else kept[0][0]
    torch.testing.assert_close(features.float(), block.reshape(4, 2, 3, 32), rtol=2e-3, atol=2e-3)


def test_another_size_begins_from_the_models_own_positions(folder):
    teacher = VideoMae(VideoMae.Options(model=folder), CPU)
    video = torch.rand(8, 3, 96, 144) * 2 - 1
    first = teacher.features(video, (2, 3))
    teacher.features(video, (6, 9))
    assert torch.equal(teacher.features(video, (2, 3)), first)


def test_what_it_cannot_look_at(folder, tmp_path):
    teacher = VideoMae(VideoMae.Options(model=folder), CPU)
    with pytest.raises(TrainerError, match="takes frames by 2, got 7"):
        teacher.features(torch.zeros(7, 3, 96, 144), (2, 3))
    with pytest.raises(TrainerError, match=r"videomae\.reduction is 3"):
        teacher(torch.zeros(9, 3, 32, 32), None, Student(range(9), (2, 2)))
    Dinov2Config().save_pretrained(tmp_path)
    with pytest.raises(TrainerError, match="type dinov2, and one of type videomae is needed"):
        VideoMae(VideoMae.Options(model=str(tmp_path)), CPU)
