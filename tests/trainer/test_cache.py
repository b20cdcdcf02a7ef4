"""The cache of windows: whole or not there, verified, and made with one set of settings."""

import errno
import os
import signal
import time
from uuid import uuid4

import pytest
import torch

pytest.importorskip("safetensors")

from lgf_trainer.data import cache as cache_module
from lgf_trainer.data.cache import WindowCache
from lgf_trainer.runtime import files
from lgf_trainer.runtime.errors import TrainerError

TENSORS = {
    "a": torch.randn(2, 3).half(),
    "b": torch.arange(5),
    "empty": torch.empty(0, 4),
    "c": torch.randn(3).bfloat16(),
}


def test_what_is_written_is_read(tmp_path):
    cache = WindowCache(tmp_path / "new", {"frames": 9, "grid": (3, 4, 6)})
    cache.write("k", TENSORS, {"caption": "ein Bär"})
    tensors, about = WindowCache(tmp_path / "new").read("k")
    assert about == {"caption": "ein Bär"} and tensors.keys() == TENSORS.keys()
    for name, tensor in TENSORS.items():
        assert tensors[name].dtype == tensor.dtype and torch.equal(tensors[name], tensor)
    assert cache.keys() == ["k"] and "k" in cache and "other" not in cache


def test_strided_tensors_are_stored_as_they_look(tmp_path):
    tensor = torch.arange(6).view(2, 3).T
    cache = WindowCache(tmp_path, {})
    cache.write("k", {"a": tensor}, {})
    assert torch.equal(cache.read("k").tensors["a"], tensor)


def test_other_settings_are_refused_by_name(tmp_path):
    WindowCache(tmp_path, {"frames": 49, "rate": 8})
    WindowCache(tmp_path, {"frames": 49, "rate": 8})
    with pytest.raises(TrainerError, match="made with frames = 49, and this run has 9"):
        WindowCache(tmp_path, {"frames": 9, "rate": 8})
    with pytest.raises(TrainerError, match="made with rate = 8, and this run has nothing"):
        WindowCache(tmp_path, {"frames": 49})


def test_the_way_out_of_other_settings(tmp_path):
    """What a run without a single window left behind is to be removed, and no other cache."""
    cache = WindowCache(tmp_path, {"frames": 49})
    with pytest.raises(TrainerError, match=r"has no windows: remove .*, unless another run is about to fill it"):
        WindowCache(tmp_path, {"frames": 9})
    cache.write("k", {"a": torch.zeros(1)}, {})
    with pytest.raises(TrainerError, match="Use another folder, or the settings it was made with"):
        WindowCache(tmp_path, {"frames": 9})


def test_the_order_of_keys_is_no_setting(tmp_path):
    WindowCache(tmp_path, {"teachers": {"raft": {"size": [128, 192], "files": ""}}, "fps": 8})
    WindowCache(tmp_path, {"fps": 8.0, "teachers": {"raft": {"files": "", "size": (128, 192)}}})
    with pytest.raises(TrainerError, match=r"was made with teachers = .*128, 192.*and this run has .*128, 200"):
        WindowCache(tmp_path, {"teachers": {"raft": {"files": "", "size": (128, 200)}}, "fps": 8})


def test_no_cache(tmp_path):
    with pytest.raises(TrainerError, match="lgf extract"):
        WindowCache(tmp_path)


@pytest.mark.parametrize("content", [b"[1]", b"5", b"\xff\xfe", b""])
def test_settings_that_are_none(tmp_path, content):
    (tmp_path / "settings.json").write_bytes(content)
    for settings in (None, {"a": 1}):
        with pytest.raises(TrainerError, match=r"settings\.json is damaged .* extract again"):
            WindowCache(tmp_path, settings)


def test_settings_that_may_not_be_read(tmp_path, monkeypatch):
    WindowCache(tmp_path, {})

    def denied(*_):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(cache_module.Path, "read_text", denied)
    with pytest.raises(TrainerError, match=r"settings\.json cannot be read \(Permission denied\)"):
        WindowCache(tmp_path)


def test_the_same_window_is_the_same_bytes(tmp_path):
    files = set()
    for index in range(20):
        cache = WindowCache(tmp_path / str(index), {})
        cache.write("k", TENSORS, {"caption": "a", "start": 0})
        files.add(cache.path("k").read_bytes())
    assert len(files) == 1


@pytest.mark.parametrize("position", [-1, -20, 40, 4])
def test_damage_is_noticed(tmp_path, position):
    cache = WindowCache(tmp_path, {})
    cache.write("k", TENSORS, {})
    content = bytearray(cache.path("k").read_bytes())
    content[position] ^= 1
    cache.path("k").write_bytes(content)
    with pytest.raises(TrainerError, match="Remove it"):
        cache.read("k")


def test_a_truncated_or_missing_file(tmp_path):
    cache = WindowCache(tmp_path, {})
    cache.write("k", TENSORS, {})
    cache.path("k").write_bytes(cache.path("k").read_bytes()[:-3])
    for key in ("k", "missing"):
        with pytest.raises(TrainerError, match="cannot be read"):
            cache.read(key)


def test_others_may_read_what_is_written(tmp_path):
    cache = WindowCache(tmp_path, {})
    cache.write("k", TENSORS, {})
    (tmp_path / "plain").touch()
    assert cache.path("k").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_a_full_disk_leaves_nothing_behind(tmp_path, monkeypatch):
    cache = WindowCache(tmp_path, {})

    def full(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(TrainerError, match="the disk is full"):
        cache.write("k", TENSORS, {})
    assert not list((tmp_path / "windows").iterdir())


def test_ctrl_c_leaves_nothing_behind(tmp_path, monkeypatch):
    cache = WindowCache(tmp_path, {})

    def stop(_):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", stop)
    with pytest.raises(KeyboardInterrupt):
        cache.write("k", TENSORS, {})
    assert not list((tmp_path / "windows").iterdir())


def test_what_a_killed_process_left_is_removed_but_not_what_is_being_written(tmp_path):
    cache = WindowCache(tmp_path, {})
    cache.write("whole", TENSORS, {})
    child = os.fork()
    if not child:
        os.fsync = lambda _: os.kill(os.getpid(), signal.SIGKILL)
        files.write_atomically(cache.path("half"), b"half")
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    (left,) = (tmp_path / "windows").glob(".*")
    in_root, young = tmp_path / f".report.json.{uuid4().hex}", tmp_path / "windows" / f".k.safetensors.{uuid4().hex}"
    others = [tmp_path / "windows" / name for name in (".nfs0000000000000001", ".notes", "notes.txt")]
    for path in (in_root, young, *others):
        path.touch()
    WindowCache(tmp_path, {})
    assert all(path.exists() for path in (left, in_root, young, *others)), "they may belong to another process"
    for path in (left, in_root, *others, cache.path("whole")):
        os.utime(path, (time.time() - 3700,) * 2)
    os.utime(young, (time.time() - 3500,) * 2)
    WindowCache(tmp_path)
    assert left.exists(), "a reader removes nothing"
    WindowCache(tmp_path, {})
    assert not left.exists() and not in_root.exists()
    assert all(path.exists() for path in (young, *others)) and cache.keys() == ["whole"]


@pytest.mark.parametrize("ahead", [-7200, 7200])
def test_what_is_abandoned_is_told_by_the_clock_of_the_file_system(tmp_path, monkeypatch, ahead):
    """The clock of this node may differ from that of the server, which writes the times of files."""
    WindowCache(tmp_path, {})
    young, old = (tmp_path / f".{name}.{uuid4().hex}" for name in ("young", "old"))
    young.touch(), old.touch()
    os.utime(old, (time.time() - 3700,) * 2)
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + ahead)
    WindowCache(tmp_path, {})
    assert young.exists() and not old.exists() and not list(tmp_path.glob(".clock*"))


def test_modules_are_found_where_the_documentation_had_them():
    from lgf_trainer.cache import WindowCache as moved
    from lgf_trainer.lora import find_lora
    from lgf_trainer.video import read_window

    assert moved is WindowCache and find_lora.__module__ == "lgf_trainer.generators.lora"
    assert read_window.__module__ == "lgf_trainer.data.video"
