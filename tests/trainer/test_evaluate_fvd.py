"""FVD: a closed form, streams, degenerate covariances, and the command on files with a tiny network."""

import json
import warnings

import numpy as np
import pytest
import torch

pytest.importorskip("av")
pytest.importorskip("tyro")

import lgf_cli
from lgf_trainer.data import export
from lgf_trainer.data.cache import WindowCache
from lgf_trainer.data.sources import find_videos
from lgf_trainer.evaluate import main
from lgf_trainer.evaluation.fvd import Clips, Gaussian, Network, features_of, frechet_distance
from lgf_trainer.runtime.errors import TrainerError


def gaussian(vectors: torch.Tensor) -> Gaussian:
    result = Gaussian()
    result.add(vectors)
    return result


def exactly(mean: torch.Tensor, root: torch.Tensor) -> Gaussian:
    """Vectors whose mean is `mean` and whose covariance is `root` root^T, exactly but for rounding."""
    size = len(mean)
    corners = torch.cat([torch.eye(size), -torch.eye(size)]).double() * ((2 * size - 1) / 2) ** 0.5
    return gaussian(mean + corners @ root.T)


# --- the distance ---------------------------------------------------------------------------------------------


def test_gaussians_that_share_their_axes():
    """There the distance is |mu_1 - mu_2|^2 + sum (sigma_1 - sigma_2)^2."""
    axes = torch.linalg.qr(torch.randn(5, 5, dtype=torch.float64))[0]
    one, other = torch.rand(2, 5, dtype=torch.float64) + 0.1
    means = torch.randn(2, 5, dtype=torch.float64)
    distance = frechet_distance(exactly(means[0], axes * one), exactly(means[1], axes * other))
    expected = (means[0] - means[1]).square().sum() + (one - other).square().sum()
    assert distance == pytest.approx(expected.item(), rel=1e-10)


def test_general_gaussians_against_the_root_of_the_product():
    """Tr (S_1 S_2)^(1/2) is the sum of the roots of the eigenvalues of S_1 S_2, which need not be symmetric."""
    one, other = (exactly(torch.zeros(6).double(), torch.randn(6, 6).double()) for _ in range(2))
    product = torch.linalg.eigvals(one.covariance @ other.covariance)
    expected = one.covariance.trace() + other.covariance.trace() - 2 * product.real.sqrt().sum()
    assert frechet_distance(one, other) == pytest.approx(expected.item(), rel=1e-9)
    assert frechet_distance(other, one) == pytest.approx(expected.item(), rel=1e-9)


def test_few_vectors_of_many_features():
    """Covariances far from full rank: still 0 to itself, and the squared distance under a shift."""
    vectors = torch.randn(4, 300)
    assert frechet_distance(gaussian(vectors), gaussian(vectors.flip(0))) == pytest.approx(0, abs=1e-6)
    assert frechet_distance(gaussian(vectors), gaussian(vectors + 2)) == pytest.approx(4 * 300, rel=1e-5)
    assert all(frechet_distance(one, one) >= 0 for one in (gaussian(torch.randn(4, 300)) for _ in range(20)))
    constant = gaussian(torch.ones(3, 300))
    assert frechet_distance(constant, gaussian(torch.zeros(3, 300))) == pytest.approx(300)


def test_orthogonal_subspaces_share_nothing():
    one, other = torch.zeros(2, 3, 2)
    one[:, 0], other[:, 1] = torch.tensor([-1.0, 0, 1]), torch.tensor([-2.0, 0, 2])
    assert frechet_distance(gaussian(one), gaussian(other)) == pytest.approx(1 + 4)


def test_samples_of_known_gaussians():
    rng = torch.Generator().manual_seed(0)
    one, other = (scale * torch.randn(200_000, 3, generator=rng) for scale in (1.0, 2.0))
    assert frechet_distance(gaussian(one), gaussian(other + 1)) == pytest.approx(3 * (1 + 1), rel=0.02)


@pytest.mark.parametrize("parts", [[1] * 12, [5, 7], [11, 1]])
def test_a_stream_gives_the_mean_and_covariance_of_the_whole(parts):
    vectors = torch.randn(12, 4, dtype=torch.float64) + 1e6  # sums of squares would lose the variance
    stream = Gaussian()
    for part in vectors.split(parts):
        stream.add(part)
    torch.testing.assert_close(stream.mean, vectors.mean(0))
    torch.testing.assert_close(stream.covariance, vectors.T.cov(), rtol=1e-8, atol=0)
    assert stream.count == 12


# --- videos and networks --------------------------------------------------------------------------------------


class Means(torch.nn.Module):
    """Mean colour of the first and of the last frame: six features."""

    def forward(self, video: torch.Tensor) -> torch.Tensor:
        return torch.stack([video[:, :, 0], video[:, :, -1]], 1).mean(dim=[3, 4]).flatten(1)


class LikeI3D(torch.nn.Module):
    """Takes the arguments of the usual file, and insists on what FVD wants of them."""

    def forward(self, x: torch.Tensor, rescale: bool = True, resize: bool = True, return_features: bool = False):
        if rescale or resize or not return_features:
            return torch.zeros(x.shape[0], 1)
        return x.mean(dim=[2, 3, 4])


def script(module: torch.nn.Module, path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.script(module).save(str(path))
    return path


def film(path, colours, fps: float = 8.0):
    """A video of plain frames."""
    frames = np.stack([np.full((32, 48, 3), colour, np.uint8) for colour in colours])
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(export.encode_video(frames, fps, {}))
    return path


@pytest.fixture
def folders(tmp_path):
    for index in range(4):
        film(tmp_path / "real" / f"{index}.mp4", [40 * index + 20 + 10 * t for t in range(4)])
        film(tmp_path / "made" / "more" / f"{index}.MP4", [40 * index + 60 + 10 * t for t in range(4)])
    (tmp_path / "real" / "notes.txt").write_text("no video")
    return tmp_path


def run(folders, *more: object) -> dict:
    network = script(Means(), folders / "net.pt")
    given = ["fvd", folders / "real", folders / "made", "--network", network, "--frames", 4, "--size", 16, 16]
    assert main([str(word) for word in [*given, "--output", folders / "fvd.json", *more]]) == 0
    return json.loads((folders / "fvd.json").read_text())


def test_the_command(folders, capsys):
    """All differ by 40 of 255 in brightness, 80 / 255 on the scale from -1 to 1, in six features."""
    result = run(folders)
    assert result["fvd"] == pytest.approx(6 * (80 / 255) ** 2, rel=0.05)
    assert (result["real"], result["generated"], result["frames"], result["size"]) == (4, 4, 4, [16, 16])
    out = capsys.readouterr().out
    assert "4 videos are few for 6 features" in out and f"FVD {result['fvd']:.2f}   (4 real and 4 generated" in out


@pytest.mark.parametrize(("videos", "few"), [(6, True), (7, False)])
def test_a_covariance_without_full_rank_is_mentioned(tmp_path, capsys, videos, few):
    """Of n videos about their mean there are n - 1 directions, and the network has six features."""
    for index in range(videos):
        for folder in ("real", "made"):
            film(tmp_path / folder / f"{index}.mp4", [20 * index + 10 * t for t in range(4)])
    run(tmp_path)
    assert (f"{videos} videos are few for 6 features" in capsys.readouterr().out) == few


def test_the_batch_does_not_matter(folders):
    assert run(folders, "--batch", 3)["fvd"] == pytest.approx(run(folders, "--batch", 1)["fvd"], rel=1e-6)


def test_clips_are_the_first_frames_at_the_asked_rate_and_size(tmp_path):
    path = film(tmp_path / "a.mp4", [10 * t for t in range(24)], fps=24)
    clip, facts = Clips(frames=4, fps=8, size=(20, 30)).read(path)
    assert facts == {"frames": 8, "height": 32, "width": 48, "rate": 24}
    assert clip.shape == (3, 4, 20, 30)
    expected = torch.tensor([0.0, 30, 60, 90]) / 127.5 - 1
    torch.testing.assert_close(clip.mean(dim=(0, 2, 3)), expected, rtol=0, atol=0.02)


def test_the_whole_picture_is_seen_whatever_its_shape(tmp_path):
    frames = np.zeros((2, 32, 96, 3), np.uint8)
    frames[:, :, :32], frames[:, :, 64:] = 255, 255  # white at both ends, black in the middle
    (tmp_path / "wide.mp4").write_bytes(export.encode_video(frames, 8, {}))
    clip, _ = Clips(frames=2, fps=8, size=(24, 24)).read(tmp_path / "wide.mp4")
    columns = clip.mean(dim=(0, 1, 2))
    assert columns[0] > 0.9 and columns[-1] > 0.9 and columns[12] < -0.9


def test_the_usual_networks_arguments_are_set(tmp_path):
    network = Network(script(LikeI3D(), tmp_path / "i3d.pt"), torch.device("cpu"))
    assert network(torch.ones(2, 3, 4, 8, 8)).shape == (2, 3)


def test_the_network_is_evaluated_not_trained(tmp_path):
    class Dropping(torch.nn.Module):
        def forward(self, video: torch.Tensor) -> torch.Tensor:
            return torch.nn.functional.dropout(video.flatten(1), training=self.training)

    network = Network(script(Dropping().train(), tmp_path / "net.pt"), torch.device("cpu"))
    assert torch.equal(network(torch.ones(2, 3, 4, 8, 8)), torch.ones(2, 768))


def test_a_sample_is_drawn_by_its_seed_and_written_down(folders):
    taken = [
        run(folders, "--sample", 3, "--seed", seed)["folders"][str(folders / "real")]["videos"] for seed in (0, 0, 1, 2)
    ]
    assert taken[0] == taken[1] and len(taken[0]) == 3 and any(other != taken[0] for other in taken[2:])
    assert taken[0] == sorted(taken[0]) and set(taken[0]) <= {str(path) for path in (folders / "real").glob("*.mp4")}
    network = str(folders / "net.pt")
    for words, reason in (
        (["--sample", "5", "--output", str(folders / "x")], "--sample 5 asks for more than the 4 videos there are"),
        (["--sample", "3"], "--output FILE says which they were"),
        (["--sample", "1"], "--sample must be at least 2, got 1"),
    ):
        with pytest.raises(TrainerError, match=reason):
            main(["fvd", str(folders / "real"), str(folders / "made"), "--network", network, *words])


def test_several_folders_are_compared_with_the_first(folders, capsys):
    for index in range(4):
        film(folders / "better" / f"{index}.mp4", [40 * index + 40 + 10 * t for t in range(4)])
    alone = run(folders)["fvd"]
    capsys.readouterr()
    network = script(Means(), folders / "net.pt")
    names = [str(folders / name) for name in ("real", "made", "better")]
    words = ["--network", str(network), "--frames", "4", "--size", "16", "16", "--output", str(folders / "all.json")]
    assert main(["fvd", *names, *words]) == 0
    result = json.loads((folders / "all.json").read_text())["folders"]
    assert list(result) == names and result[names[1]]["fvd"] == pytest.approx(alone, rel=1e-6)
    better = result[names[2]]["fvd"]
    assert better == pytest.approx(alone / 4, rel=0.1)
    out = capsys.readouterr().out
    assert f"of {names[2]}, 4 frames at 8 fps, {100 * (1 - better / alone):.2f} % lower than {names[1]})" in out
    assert "differ" not in out


def test_folders_that_differ_are_described_and_warned_of(folders, capsys):
    film(folders / "made" / "fast.mp4", [10 * t for t in range(24)], fps=24)
    for _ in range(2):  # read, and from a cache
        result = run(folders, "--cache", folders / "cache")
        out = capsys.readouterr().out
        assert f"{folders / 'real'}: 4 videos of 4 frames, 32 x 48 pixels, 8 frames a second in the file" in out
        assert (
            f"{folders / 'made'}: 5 videos of 4 to 8 frames, 32 x 48 pixels, 8 to 24 frames a second in the file" in out
        )
        assert (
            "The folders differ in length" in out
            and "The folders differ in rate" in out
            and "differ in size" not in out
        )
        assert result["folders"][str(folders / "made")]["rate"] == [8, 24]


def test_damaged_and_short_videos_are_left_out_and_named(folders, capsys):
    whole = run(folders)["fvd"]
    film(folders / "real" / "short.mp4", [0, 1])
    (folders / "made" / "broken.mp4").write_bytes(b"no video")
    capsys.readouterr()
    assert run(folders)["fvd"] == pytest.approx(whole)
    out = capsys.readouterr().out
    assert "left out: " in out and "short.mp4 has 2 frames at 8 per second, and 4 are needed" in out
    assert "broken.mp4 is not a video" in out


def test_features_are_kept_and_a_stopped_run_goes_on(folders, monkeypatch):
    seen = []

    def network(clips):
        if len(seen) == 3:
            raise KeyboardInterrupt
        seen.append(clips)
        return Means()(clips)

    clips, cache = Clips(4, 8, (16, 16)), WindowCache(folders / "cache", {})
    videos = find_videos(folders / "real")
    with pytest.raises(KeyboardInterrupt):
        features_of(videos, network, clips, 1, cache)
    seen.clear()
    (folders / "real" / "0.mp4").rename(folders / "real" / "z.mp4")  # known by its content
    features = features_of(find_videos(folders / "real"), network, clips, 1, cache)
    assert len(seen) == 1
    monkeypatch.setattr(Clips, "read", lambda *_: pytest.fail("it is in the cache"))
    again = features_of(find_videos(folders / "real"), network, clips, 1, cache)
    torch.testing.assert_close(again.gaussian.mean, features.gaussian.mean)
    expected = gaussian(torch.cat([again.gaussian.mean[None]] * 2))
    assert frechet_distance(again.gaussian, features.gaussian) < 1e-9 < frechet_distance(again.gaussian, expected)


def test_the_cache_is_of_one_network_and_one_kind_of_clip(folders):
    run(folders, "--cache", folders / "cache")
    run(folders, "--cache", folders / "cache")
    with pytest.raises(TrainerError, match="was made with frames = 4, and this run has 3"):
        run(folders, "--cache", folders / "cache", "--frames", 3)
    other = script(LikeI3D(), folders / "other.pt")
    with pytest.raises(TrainerError, match="was made with network = "):
        run(folders, "--cache", folders / "cache", "--network", other)


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        ("{f}/gone {f}/made --network {f}/net.pt", "gone: no such folder"),
        ("{f}/real {f}/cache --network {f}/net.pt", "cache: no such folder"),
        ("{f}/real {f}/lonely --network {f}/net.pt", "lonely has 1 videos, and 2 at least are needed"),
        ("{f}/real {f}/made --network {f}/gone.pt", "gone.pt: no such file"),
        ("{f}/real {f}/made --network {f}/real/notes.txt", "is no TorchScript network"),
        ("{f}/real {f}/made --network {f}/flat.pt", "expected (batch, features)"),
        ("{f}/real {f}/made --network {f}/nan.pt", "are not finite"),
        (
            "{f}/real {f}/made --network {f}/pair.pt",
            "pair.pt makes tuple of (4, 3, 4, 16, 16): expected (batch, features)",
        ),
        ("{f}/real {f}/made --network {f}/strict.pt", "strict.pt cannot take (4, 3, 4, 16, 16) ("),
        ("{f}/real {f}/made --network {f}/net.pt --fps inf", "--fps must be finite and above 0, got inf"),
        ("{f}/real {f}/made --network {f}/net.pt --frames 9", "no two videos of"),
        ("{f}/real {f}/made --network {f}/net.pt --batch 0", "--batch must be at least 1, got 0"),
        ("{f}/real {f}/made --network {f}/net.pt --device moon", "--device moon cannot be used here"),
        (
            "{f}/real {f}/made --network {f}/net.pt --seed 9223372036854775808",
            "--seed must fit into 64 bits, from -2^63 to",
        ),
        (
            "{f}/real {f}/made {f}/made --network {f}/net.pt",
            "made is given twice, whose distance from itself is 0. Name each",
        ),
        ("{f}/real {f}/made/../real --network {f}/net.pt", "real and {f}/made/../real are one folder"),
        ("{f}/real {f}/made --network {f}/net.pt --size 0 8", "--size must be at least 1, got 0"),
    ],
)
def test_mistakes_end_in_one_line(folders, words, reason):
    class Flat(torch.nn.Module):
        def forward(self, video: torch.Tensor):
            return video.mean()

    class Nan(torch.nn.Module):
        def forward(self, video: torch.Tensor):
            return video.mean(dim=[2, 3, 4]) / 0.0 * 0.0

    class Pair(torch.nn.Module):
        def forward(self, video: torch.Tensor):
            return video, video

    class Strict(torch.nn.Module):
        def forward(self, video: torch.Tensor):
            return video.reshape(-1, 7)

    modules = {"net": Means(), "flat": Flat(), "nan": Nan(), "pair": Pair(), "strict": Strict()}
    for name, module in modules.items():
        script(module, folders / f"{name}.pt")
    film(folders / "lonely" / "a.mp4", [1, 2, 3, 4])
    given = [word.format(f=folders) for word in words.split()]
    with pytest.raises(SystemExit) as end:
        lgf_cli.main(["eval", "fvd", "--frames", "4", "--size", "16", "16", *given])
    assert reason.format(f=folders) in str(end.value) and "\n" not in str(end.value)
