"""The index of a large cache: it spares the listing, and is believed only while the folder is as it was."""

import os
import sys

import pytest
import torch

pytest.importorskip("safetensors")

from lgf_trainer.data import index
from lgf_trainer.data.cache import WindowCache
from lgf_trainer.data.samples import WindowTensors

KEYS = [f"window-{number}" for number in range(4)]


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setattr(index, "LARGE", 4)
    monkeypatch.setattr(index, "COARSE", 0.05)


@pytest.fixture
def cache(tmp_path):
    cache = WindowCache(tmp_path / "cache", {})
    for number, key in enumerate(KEYS):
        write(cache, key, number)
    cache.index()
    return cache


@pytest.fixture
def listings(monkeypatch):
    """Folders that were listed."""
    seen = []
    real = index.listed
    monkeypatch.setattr("lgf_trainer.data.cache.listed", lambda folder: seen.append(folder) or real(folder))
    return seen


def write(cache, key, number=0):
    cache.write(key, {"a": torch.full((2,), float(number))}, {})


def test_a_large_cache_is_opened_without_listing_it(cache, listings):
    assert WindowCache(cache.folder).keys() == KEYS and not listings


def test_samples_list_no_folder(cache):
    data = WindowTensors(cache, cache.keys(), ("a",), seed=0)
    events, counting = [], True
    sys.addaudithook(lambda event, args: counting and events.append((event, args)))
    seen = [float(data[number]["a"][0]) for number in range(8)]
    counting = False
    assert sorted(seen) == sorted([0.0, 1.0, 2.0, 3.0] * 2)
    assert not {event for event, _ in events} & {"os.listdir", "os.scandir"}


@pytest.mark.parametrize(
    "change",
    [
        lambda cache: write(cache, "window-4"),
        lambda cache: cache.path("window-0").unlink(),
        lambda cache: cache.path("window-0").rename(cache.path("window-00")),
        lambda cache: (cache.folder / "windows.index").unlink(),
        lambda cache: (cache.folder / "windows.index").write_bytes(b""),
        lambda cache: (cache.folder / "windows.index").write_bytes(
            (cache.folder / "windows.index").read_bytes().replace(b"window-1", b"window-7")
        ),
    ],
    ids=["added", "removed", "renamed", "no index", "empty", "damaged"],
)
def test_what_has_changed_is_listed(cache, listings, change):
    change(cache)
    assert cache.keys() == index.listed(cache.folder / "windows") and listings


def test_a_later_index_replaces_the_outdated_one(cache, listings):
    write(cache, "window-4")
    WindowCache(cache.folder, {}).index()
    assert cache.keys() == [*KEYS, "window-4"] and not listings


def test_small_caches_and_old_ones_have_none(tmp_path, listings):
    cache = WindowCache(tmp_path, {})
    for key in KEYS[:3]:
        write(cache, key)
    cache.index()
    assert not (tmp_path / "windows.index").exists()
    assert cache.keys() == KEYS[:3] and listings


def test_none_is_written_while_another_process_writes(cache, monkeypatch):
    before = (cache.folder / "windows.index").read_bytes()
    monkeypatch.setattr(index.time, "sleep", lambda _: write(cache, "window-4"))
    cache.index()
    assert (cache.folder / "windows.index").read_bytes() == before


def test_none_is_written_where_folders_do_not_tell_when_they_change(cache, monkeypatch):
    (cache.folder / "windows.index").unlink()
    real = index.Path.unlink

    def unlink(path):
        real(path)
        os.utime(path.parent, (1e9, 1e9))

    monkeypatch.setattr(index.Path, "unlink", unlink)
    cache.index()
    assert not (cache.folder / "windows.index").exists()


def test_nothing_but_the_index_is_left(cache):
    assert sorted(path.name for path in cache.folder.iterdir()) == ["settings.json", "windows", "windows.index"]
    assert sorted(path.stem for path in (cache.folder / "windows").iterdir()) == KEYS
