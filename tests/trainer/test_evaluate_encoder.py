"""Measures of encoders have the values that can be written down, and the command says them."""

import io
import json
import math

import numpy as np
import pytest
import torch

pytest.importorskip("av")
pytest.importorskip("diffusers")
pytest.importorskip("matplotlib")
pytest.importorskip("transformers")
pytest.importorskip("tyro")

import lgf_cli
from lgf_trainer.data.cache import WindowCache
from lgf_trainer.data.video import read_video
from lgf_trainer.evaluation.encoder_report import Measures, draw, measured, table
from lgf_trainer.evaluation.encoders import EPSILON, best_clusters, cluster_ratio, frequency_gap, high_frequencies
from lgf_trainer.runtime.errors import TrainerError
from lgf_trainer.teachers.dino import Dino
from lgf_trainer.testing import DINO_CHANNELS, make_tiny_dino
from PIL import Image
from support.clips import write_clip
from torch.nn.functional import normalize

EULER = 0.5772156649


def planted(clusters=4, each=500, channels=32, apart=10.0, deviation=1.0):
    """Gaussian clusters at one distance from each other: on the axes."""
    centres = torch.eye(clusters, channels) * apart / math.sqrt(2)
    points = centres.repeat_interleave(each, 0) + deviation * torch.randn(clusters * each, channels)
    return points.view(2, clusters * each // 20, 10, channels)


def test_ratio_of_planted_clusters():
    ratio = cluster_ratio(planted(), 4, unit=False)
    assert ratio == pytest.approx(10 / math.sqrt(32), rel=0.03)


@pytest.mark.parametrize("unit", [True, False])
def test_ratio_does_not_depend_on_order_rotation_and_scale(unit):
    features = planted()
    ratio = cluster_ratio(features, 4, unit=unit)
    rotation, _ = torch.linalg.qr(torch.randn(32, 32))
    order = torch.randperm(2000)
    changed = {
        "order": features.flatten(0, -2)[order],
        "rotation": features @ rotation,
        "scale": 7 * features,
        "copies": features[:1].repeat(3, 1, 1, 1),
    }
    same = {name: cluster_ratio(values, 4, unit=unit) for name, values in changed.items()}
    one = cluster_ratio(features[:1], 2, unit=unit)
    assert same.pop("copies") != ratio and cluster_ratio(changed["copies"], 2, unit=unit) == pytest.approx(
        one, rel=1e-4
    )
    assert list(same.values()) == pytest.approx([ratio] * 3, rel=1e-4)


def test_unit_length_is_what_tells_encoders_of_different_scales_apart():
    features = planted() + 1
    longer = features * torch.linspace(1, 5, 2000).view(2, 100, 10, 1)
    assert cluster_ratio(longer, 4) == pytest.approx(
        cluster_ratio(normalize(features, dim=-1), 4, unit=False), rel=1e-4
    )
    assert cluster_ratio(longer, 4, unit=False) != pytest.approx(cluster_ratio(features, 4, unit=False), rel=0.1)


def test_two_runs_are_equal_to_the_bit():
    features = torch.randn(4, 10, 10, 16)
    assert cluster_ratio(features, 8) == cluster_ratio(features, 8)
    assert cluster_ratio(features, 8, patches=100) == cluster_ratio(features, 8, patches=100)
    assert cluster_ratio(features, 8, patches=100) != cluster_ratio(features, 8, patches=100, seed=1)


def test_points_without_a_spread_have_an_infinite_ratio_and_too_few_are_refused():
    features = torch.eye(3, 8).repeat(5, 1)
    assert cluster_ratio(features, 3) == math.inf
    with pytest.raises(TrainerError, match="4 clusters are asked for, and there are 3 different patches"):
        cluster_ratio(features, 4)
    with pytest.raises(TrainerError, match="at least 2 clusters, got 1"):
        cluster_ratio(features, 1)


def test_clusters_are_those_of_the_least_inertia():
    """Of 9 points all partitions into 3 can be tried."""
    points = torch.randn(9, 2)
    found = best_clusters(points, 3, torch.Generator().manual_seed(0))

    def inertia(labels):
        groups = [points[labels == k] for k in range(3)]
        return sum(((g - g.mean(0)).square().sum().item()) for g in groups if len(g))

    partitions = torch.cartesian_prod(*[torch.arange(3)] * 9)
    assert found.inertia == pytest.approx(min(map(inertia, partitions)), rel=1e-4)
    assert inertia(found.labels) == pytest.approx(found.inertia, rel=1e-4)


def test_gap_of_a_constant_map():
    assert frequency_gap(torch.full((2, 6, 8, 1), 3.0)) == pytest.approx(
        math.log(EPSILON) - math.log(48 + EPSILON), abs=1e-6
    )


def test_gap_of_white_noise():
    """Magnitudes of noise are Rayleigh's: their logarithm is log(sqrt(h w)) - gamma / 2 in the mean."""
    noise = torch.randn(8, 32, 32, 64, dtype=torch.float64)
    gap, dc = frequency_gap(noise), math.log(math.sqrt(32 * 32)) - (EULER + math.log(2)) / 2
    high = math.log(math.sqrt(32 * 32)) - EULER / 2
    assert gap == pytest.approx(high - dc, abs=0.06)  # frequency 0 is real, and there is one a map
    frames = noise / noise.square().mean((1, 2, 3), keepdim=True).sqrt()
    spectrum = (torch.fft.fft2(frames, dim=(1, 2)).abs() + EPSILON).log().mean((0, 3))
    assert spectrum[high_frequencies(32, 32)].mean().item() == pytest.approx(high, abs=0.01)
    assert gap == pytest.approx((spectrum[high_frequencies(32, 32)].mean() - spectrum[0, 0]).item(), abs=1e-9)


def test_a_cosine_raises_its_own_bins():
    rows = torch.arange(8, dtype=torch.float64)
    wave = (
        torch.cos(math.pi * rows)[:, None].expand(8, 8)[None, ..., None].clone()
    )  # the highest frequency along the rows
    slow = torch.cos(math.pi * rows / 4)[:, None].expand(8, 8)[None, ..., None]
    high, count = math.log(64 + EPSILON), int(high_frequencies(8, 8).sum())
    assert frequency_gap(wave) == pytest.approx((high - math.log(EPSILON)) / count, abs=1e-4)
    assert frequency_gap(slow) == pytest.approx(0, abs=1e-4)  # below 0.75: neither


def test_gap_of_the_transposed_map_and_of_another_scale():
    features = torch.randn(3, 6, 10, 4)
    gap = frequency_gap(features)
    assert frequency_gap(features.transpose(1, 2)) == pytest.approx(gap, abs=1e-9)
    assert frequency_gap(100 * features) == pytest.approx(gap, abs=1e-5)


def test_high_frequencies_are_beyond_three_quarters_with_corners():
    high = high_frequencies(8, 16)
    assert [bool(high[row, 0]) for row in range(5)] == [False] * 4 + [True]  # 3 / 4 is not beyond
    assert [bool(high[0, column]) for column in range(9)] == [False] * 7 + [True] * 2
    assert high[3, 3] and high[4, 8] and not high[0, 0]


@pytest.fixture
def cache(tmp_path):
    cache = WindowCache(tmp_path / "cache", {"frames": 4})
    for key in ("one", "two"):
        smooth = torch.randn(4, 3, 3, 8).repeat_interleave(2, 1).repeat_interleave(2, 2)
        cache.write(
            key, {"features_rough": torch.randn(4, 6, 6, 8).half(), "features_smooth": smooth, "text": smooth + 1}, {}
        )
    (cache.folder / "a.mp4").touch()
    return cache.folder


def test_the_command_measures_the_features_of_a_cache(cache, tmp_path, capsys):
    out = tmp_path / "out"
    assert lgf_cli.main(["eval", "encoder", str(cache), "--clusters", "2", "4", "--output", str(out)]) == 0
    shown = capsys.readouterr().out
    numbers = json.loads((out / "encoder.json").read_text())
    assert list(numbers)[:2] == ["rough", "smooth"] and numbers["rough"]["videos"] == 2
    windows = [WindowCache(cache).read(key).tensors["features_smooth"] for key in ("one", "two")]
    expected = sum(cluster_ratio(window, 4) for window in windows) / 2
    assert numbers["smooth"]["iicr"]["4"] == pytest.approx(expected) and f"{expected:.3f}" in shown
    assert numbers["smooth"]["frequency_gap"] < numbers["rough"]["frequency_gap"]
    assert f"{numbers['rough']['frequency_gap']:+.3f}" in shown and "4 x 6 x 6 x 8" in shown
    assert Image.open(out / "encoder.png").size[0] > 800
    assert lgf_cli.main(["eval", "encoder", str(cache), "--features", "rough", "--output", str(out)]) == 0
    assert "smooth" not in capsys.readouterr().out


def test_the_command_measures_what_a_teacher_makes_of_videos(tmp_path, capsys):
    folder, video = make_tiny_dino(tmp_path / "dino"), tmp_path / "clips" / "a.mp4"
    video.parent.mkdir()
    write_clip(video, frames=6)
    words = ["--teachers", "dino", "--teacher-options", f"dino.model={folder}", "--grid", "4", "6", "--clusters", "3"]
    assert (
        lgf_cli.main(["eval", "encoder", str(video.parent), *words, "--output", str(tmp_path), "--device", "cpu"]) == 0
    )
    numbers = json.loads((tmp_path / "encoder.json").read_text())["dino"]
    pixels = read_video(video, (4 * 16, 6 * 16))
    teacher = Dino(Dino.Options(model=str(folder)), torch.device("cpu"))
    features = teacher.features(pixels, (4, 6)).half()
    assert numbers["shape"] == [len(pixels), 4, 6, DINO_CHANNELS]
    assert numbers["frequency_gap"] == pytest.approx(frequency_gap(features))
    assert numbers["iicr"] == {"3": pytest.approx(cluster_ratio(features, 3))}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--features", "dino"], r"holds no features of dino\. There are: rough, smooth\. Extract with --teachers"),
        (["--clusters", "1"], r"--clusters must be at least 2, got 1"),
        (["--clusters", "4000", "--windows", "1"], r"4000 clusters are asked for, and there are 144 different patches"),
        (["--teachers", "sam2"], r"--teachers sam2 needs a subject\. Extract with it, and give the cache"),
        (["--teachers", "dino", "--features", "dino"], r"Give one of them"),
    ],
)
def test_what_cannot_be_measured_is_said_in_one_line(cache, words, message):
    with pytest.raises(SystemExit, match=message):
        lgf_cli.main(["eval", "encoder", str(cache), *words])


def test_features_that_have_no_measure_are_refused_by_name():
    broken, column = torch.randn(2, 4, 4, 8), torch.randn(2, 3, 1, 8)
    broken[0, 1, 2, 3] = math.inf
    for features, message in ((broken, "dino hold NaN or inf"), (column, "dino have 3 x 1 tokens a frame")):
        with pytest.raises(TrainerError, match=message):
            measured([{"dino": features}], (2,), unit=True, patches=100, seed=0)


def test_the_picture_shows_every_encoder():
    def picture(**gaps):
        found = {
            name: Measures({2: [1.0, 2.0], 4: [0.5, 1.0]}, [gap, gap + 0.1], (4, 6, 6, 8)) for name, gap in gaps.items()
        }
        return np.array(Image.open(io.BytesIO(draw(found))).convert("RGB")).astype(int)

    def orange(values):  # the second encoder's
        return int((values[..., 0] - values[..., 2] > 100).sum())

    assert orange(picture(a=-1.0)) == 0 and orange(picture(a=-1.0, b=-2.0)) > 100


def test_an_infinite_ratio_is_explained():
    assert Measures({2: [math.inf], 3: [1.5]}, [0.0]).row()["iicr"] == {"2": None, "3": 1.5}
    assert "no spread to divide by" in table({"a": Measures({2: [math.inf]}, [0.0], (1, 2, 2, 3))})
    assert "no spread" not in table({"a": Measures({2: [1.0]}, [0.0], (1, 2, 2, 3))})
