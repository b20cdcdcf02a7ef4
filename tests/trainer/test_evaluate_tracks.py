"""Pictures of tracks show the tracks of the cache, over its video."""

import io

import numpy as np
import pytest
import torch

pytest.importorskip("av")
pytest.importorskip("matplotlib")
pytest.importorskip("tyro")

import lgf_cli
from lgf_demo.clips import make_clip
from lgf_trainer.data import export
from lgf_trainer.data.cache import WindowCache
from lgf_trainer.evaluation.tracks import WindowTracks, draw, first_places, summary
from PIL import Image


def straight(points=12, frames=9, size=(80, 112)):
    """Tracks that move by 3 pixels to the right, the first half of which is lost in the middle."""
    begin = torch.rand(points, 1, 2) * torch.tensor(size) * 0.5
    places = begin + torch.arange(frames).view(1, -1, 1) * torch.tensor([0.0, 3.0])
    visible = torch.ones(points, frames, dtype=torch.bool)
    visible[: points // 2, frames // 2 :] = False
    return places, visible


@pytest.fixture
def folder(tmp_path):
    clip = make_clip(0, 9, 10, 14)
    pixels = ((clip.video + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy()
    (tmp_path / "clip.mp4").write_bytes(export.encode_video(pixels, 8, {}))
    cache = WindowCache(tmp_path / "cache", {"frames": 9, "height": 80, "width": 112, "fps": 8})
    places, visible = straight()
    about = {"video": str(tmp_path / "clip.mp4"), "start": 0}
    cache.write("one", {"tracks": places, "tracks_visible": visible.to(torch.uint8)}, about)
    cache.write("two", {"tracks": places, "tracks_visible": visible.to(torch.uint8)}, about | {"video": "gone.mp4"})
    return tmp_path


def test_the_command_draws_and_says_what_there_is(folder, capsys):
    assert lgf_cli.main(["eval", "tracks", str(folder / "cache"), "--output", str(folder / "out")]) == 0
    shown = capsys.readouterr().out
    assert "12 tracks, in sight in 72% of the frames, 3.00 pixels a frame, 0% teach nothing" in shown
    for name in ("one", "two"):
        picture = np.array(Image.open(folder / "out" / f"{name}.png").convert("RGB"))
        assert picture.shape[1] > 1500 and (picture.reshape(-1, 3).std(0) > 5).all()


def test_only_what_is_in_sight_is_drawn():
    places, visible = straight(2)

    def coloured(visible):
        tracks = WindowTracks("w", places, visible, None, (80, 112))
        picture = np.array(Image.open(io.BytesIO(draw(tracks, 2, 2))).convert("RGB")).astype(int)
        last = picture[:, picture.shape[1] // 2 :]
        return int((last.max(-1) - last.min(-1) > 60).sum())

    both = torch.ones_like(visible)
    assert coloured(both) > 1.5 * coloured(visible) > 0
    visible[:] = False
    assert coloured(visible) == 0


@pytest.mark.parametrize("in_sight", [True, False])
def test_one_track_is_drawn_where_it_is_in_sight(in_sight):
    places, visible = straight(points=1)
    visible[0, 0] = in_sight
    Image.open(io.BytesIO(draw(WindowTracks("one", places, visible | in_sight, None, (80, 112)), 3, 256)))


def test_where_a_track_is_first_in_sight():
    places = torch.arange(12.0).view(2, 3, 2)
    visible = torch.tensor([[True, True, False], [False, False, True]])
    assert first_places(places, visible).tolist() == [[0, 1], [10, 11]]
    assert "50% teach nothing" in summary(WindowTracks("w", places, visible, None, (8, 8)))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "name caches"),
        (["--points", "0"], "--points must be at least 1, got 0"),
        (
            ["no-tracks"],
            "have no tracks, which lgf eval tracks reads; they have latents. Extract with lgf extract --teachers tracks",
        ),
        (["empty"], "empty has no windows yet. Fill it with lgf extract"),
    ],
)
def test_bad_input_ends_in_one_line(tmp_path, words, message):
    WindowCache(tmp_path / "empty", {"frames": 9})
    WindowCache(tmp_path / "no-tracks", {"frames": 9}).write(
        "a", {"latents": torch.zeros(1)}, {"video": "", "start": 0}
    )
    words = [str(tmp_path / word) if word in ("empty", "no-tracks") else word for word in words]
    if words and words[0].startswith("--"):
        words = [str(tmp_path / "empty"), *words]
    with pytest.raises(SystemExit, match=message):
        lgf_cli.main(["eval", "tracks", *words, "--output", str(tmp_path / "out")])
