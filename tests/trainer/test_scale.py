"""Extraction of many clips: what is kept of a video, and the tool that extracts thousands, in small."""

import gc
import weakref

import pytest

pytest.importorskip("accelerate")
pytest.importorskip("av")
pytest.importorskip("diffusers")

import extraction_at_scale as scale
from lgf_cli import main as lgf
from lgf_trainer import extract
from lgf_trainer.data.cache import WindowCache
from lgf_trainer.testing import make_tiny_pipeline

CLIPS = 12


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("scale")
    scale.make_clips(folder, CLIPS)
    make_tiny_pipeline(folder / "model", image_to_video=False)
    return folder


@pytest.fixture
def extraction(place, tmp_path, monkeypatch):
    """`lgf extract` of the clips with the stub encoder: (cache, report)."""
    monkeypatch.setattr(extract, "Encoders", scale.StubEncoder)

    def run():
        whole = scale.Extraction(place, tmp_path / "cache")
        assert lgf(["extract", *whole.words()]) == 0
        return WindowCache(whole.output), whole.report()

    return run


def test_nothing_is_kept_of_a_video_once_its_windows_are_made(extraction, monkeypatch):
    """Memory would grow with the number of videos."""
    alive, most, real = weakref.WeakSet(), 0, extract.Video

    def opened(*arguments):
        nonlocal most
        gc.collect()
        most = max(most, len(alive))
        alive.add(video := real(*arguments))
        return video

    monkeypatch.setattr(extract, "Video", opened)
    extraction()
    assert most == 1


def test_every_clip_of_folders_and_shards_is_one_window(extraction):
    cache, report = extraction()
    scale.check(report, cache, CLIPS)
    with pytest.raises(SystemExit, match=r"12 clips in 12 windows, 13 are expected"):
        scale.check(report, cache, CLIPS + 1)
    cache, report = extraction()
    assert len(report["present"]) == CLIPS and not report["written"]
    scale.check(report, cache, CLIPS)
    lost, *others = cache.keys()
    cache.path(lost).unlink()
    with pytest.raises(SystemExit, match="the report is not of the windows that are there"):
        scale.check(report, cache, CLIPS)
    tensors, about = cache.read(others[0])
    cache.write(lost, tensors, about)
    with pytest.raises(SystemExit, match=r"11 clips in 12 windows"):
        scale.check(report, cache, CLIPS)


@pytest.mark.slow
def test_the_tool_kills_and_goes_on(tmp_path, capsys):
    assert scale.main([str(tmp_path), "--clips", "40", "--kills", "1"]) == 0
    shown = capsys.readouterr().out
    assert "killed with" in shown and "windows were kept and" in shown and "process 1: " in shown


def test_the_tool_notices_what_has_grown_and_what_has_changed():
    scale.print_memory(0, [(0, 100.0, 1.0), (10, 400.0, 2.0), (100, 420.0, 3.0)])
    with pytest.raises(SystemExit, match="process 1 has grown by more than 64 MiB"):
        scale.print_memory(1, [(0, 100.0, 1.0), (10, 400.0, 2.0), (100, 480.0, 3.0)])
    scale.check_kept({"a": "1"}, {"a": "1", "b": "2"})
    with pytest.raises(SystemExit, match="changed or lost"):
        scale.check_kept({"a": "1"}, {"a": "2", "b": "2"})
