"""Which videos a folder or a shard holds: through links too, and what cannot be read is said."""

import tarfile
from pathlib import Path

import pytest

pytest.importorskip("av")

from lgf_trainer.data.sources import find_videos, list_clips
from lgf_trainer.runtime.errors import TrainerError


def names(folder: Path) -> list[str]:
    clips = [Path(clip.name).relative_to(folder).as_posix() for clip in list_clips([folder])]
    assert clips == [path.relative_to(folder).as_posix() for path in find_videos(folder)]
    return clips


@pytest.fixture
def folder(tmp_path):
    """A folder with a video, and one elsewhere with another and its caption."""
    (tmp_path / "here").mkdir()
    (tmp_path / "elsewhere" / "deep").mkdir(parents=True)
    (tmp_path / "here" / "a.mp4").write_bytes(b"a")
    (tmp_path / "elsewhere" / "deep" / "b.mp4").write_bytes(b"b")
    (tmp_path / "elsewhere" / "deep" / "b.txt").write_text("a dog")
    return tmp_path / "here"


def test_a_link_to_a_folder_is_followed(folder):
    (folder / "link").symlink_to(folder.parent / "elsewhere")
    assert names(folder) == ["a.mp4", "link/deep/b.mp4"]
    assert [clip.caption for clip in list_clips([folder])] == [None, "a dog"]


def test_a_link_back_up_is_not_followed_again(folder):
    (folder / "link").symlink_to(folder.parent / "elsewhere")
    (folder.parent / "elsewhere" / "back").symlink_to(folder)
    (folder / "self").symlink_to(folder)
    assert names(folder) == ["a.mp4", "link/deep/b.mp4"]


def test_a_link_to_nothing_is_listed_so_that_reading_it_says_so(folder):
    (folder / "gone.mp4").symlink_to(folder / "nowhere.mp4")
    assert names(folder) == ["a.mp4", "gone.mp4"]
    with pytest.raises(FileNotFoundError), list_clips([folder])[1].open():
        pass


def test_a_folder_that_cannot_be_read_is_named(folder, monkeypatch):
    (folder / "closed").mkdir()
    real = Path.iterdir

    def iterdir(path):
        if path.name == "closed":
            raise PermissionError(13, "Permission denied", str(path))
        return real(path)

    monkeypatch.setattr(Path, "iterdir", iterdir)
    for lister in (lambda: list_clips([folder]), lambda: find_videos(folder)):
        with pytest.raises(TrainerError, match=r"closed cannot be read \(Permission denied\)"):
            lister()


@pytest.mark.parametrize("suffix", [".asf", ".m2ts", ".MKV", ".3gp", ".f4v", ".h264", ".Y4M"])
def test_more_containers(tmp_path, suffix):
    (tmp_path / f"a{suffix}").write_bytes(b"a")
    assert names(tmp_path) == [f"a{suffix}"]


def test_hidden_files_are_no_videos(folder):
    """As macOS leaves them on other file systems: not what they are named after."""
    (folder / "._a.mp4").write_bytes(b"attributes")
    assert names(folder) == ["a.mp4"]


@pytest.mark.parametrize("name", ["shard-0.tar.gz", "shard-0.TGZ", "clips.zip"])
def test_an_archive_that_is_not_read_is_said(folder, name):
    (folder / name).write_bytes(b"compressed")
    for source in (folder, folder / name):
        with pytest.raises(TrainerError, match=r"is not an uncompressed \.tar file.*Unpack it, or leave it out"):
            list_clips([source])


def test_links_that_lead_to_each_other_are_links_to_nothing(folder):
    (folder / "b.mp4").symlink_to(folder / "c.mp4")
    (folder / "c.mp4").symlink_to(folder / "b.mp4")
    assert names(folder) == ["a.mp4", "b.mp4", "c.mp4"]
    with pytest.raises(OSError), list_clips([folder])[1].open():
        pass


def test_links_in_a_shard(tmp_path):
    (tmp_path / "a.mp4").write_bytes(b"video")
    with tarfile.open(tmp_path / "SHARD.TAR", "w") as shard:
        shard.add(tmp_path / "a.mp4", "a.mp4")
        for name, kind, target in (
            ("b.mp4", tarfile.LNKTYPE, "a.mp4"), ("c.mp4", tarfile.SYMTYPE, "a.mp4"), ("d.mp4", tarfile.SYMTYPE, "gone.mp4")
        ):  # fmt: skip
            link = tarfile.TarInfo(name)
            link.type, link.linkname = kind, target
            shard.addfile(link)
    (tmp_path / "a.mp4").unlink()
    for source in (tmp_path, tmp_path / "SHARD.TAR"):
        *clips, broken = list_clips([source])
        assert [Path(clip.name).name for clip in clips] == ["a.mp4", "b.mp4", "c.mp4"]
        for clip in clips:
            with clip.open() as file:
                assert file.read() == b"video"
        with pytest.raises(OSError, match=r"a link to gone\.mp4, which is no file of the archive"), broken.open():
            pass
