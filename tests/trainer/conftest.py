"""A tiny model and a cache of random windows, made once."""

import pytest
import torch


@pytest.fixture(scope="session")
def tiny_place(tmp_path_factory):
    """A folder with `model` (an image-to-video pipeline) and `cache` (six windows for it)."""
    pytest.importorskip("diffusers")
    from lgf_trainer.testing import make_tiny_pipeline
    from trainer.training_data import make_cache

    place = tmp_path_factory.mktemp("tiny")
    make_tiny_pipeline(place / "model")
    make_cache(place / "cache")
    return place


@pytest.fixture(scope="session")
def wan_place(tmp_path_factory):
    """The same with a text-to-video Wan2.1."""
    pytest.importorskip("diffusers")
    from lgf_trainer.testing import make_tiny_wan
    from trainer.training_data import make_cache, wan_window

    place = tmp_path_factory.mktemp("wan")
    make_tiny_wan(place / "model")
    make_cache(place / "cache", window=wan_window)
    return place


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)  # with more, tiny models are many times slower
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def fresh_accelerator():
    """accelerate keeps its state for a whole process; every test begins without."""
    yield
    try:
        from accelerate.state import AcceleratorState
    except ImportError:
        return
    AcceleratorState._reset_state(reset_partial_state=True)
