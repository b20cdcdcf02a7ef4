"""A sample is a function of seed and number; batches are dealt to processes so that their union is always the same."""

import multiprocessing
import pickle
import tempfile
from functools import partial
from multiprocessing import current_process

import pytest
import torch

pytest.importorskip("diffusers")

from diffusers import CogVideoXDDIMScheduler
from lgf_trainer.data import samples as dataset
from lgf_trainer.data.cache import WindowCache
from lgf_trainer.data.samples import BatchNumbers, TrainingSamples, load_samples, mix
from lgf_trainer.runtime.errors import TrainerError
from trainer.test_cogvideox import small
from trainer.training_data import LATENT_FRAMES, make_cache, random_window


@pytest.fixture
def cache(tmp_path):
    return make_cache(tmp_path / "cache", windows=4)


def samples(cache, generator=None, **options):
    return TrainingSamples(cache, generator or small(), **({"seed": 1, "targets": ("masks",)} | options))


def equal(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_samples_depend_on_seed_and_number_alone(cache):
    first, second = samples(cache), samples(cache)
    torch.randn(3)  # the global state plays no part
    assert equal(first[5], second[5])
    assert not torch.equal(first[5]["noise"], first[6]["noise"])
    assert not torch.equal(first[5]["noise"], samples(cache, seed=2)[5]["noise"])


def test_an_epoch_is_every_window_once_in_an_order_of_its_own(cache):
    keys = [samples(cache).key(number) for number in range(40)]
    epochs = [keys[start : start + 4] for start in range(0, 40, 4)]
    assert all(sorted(epoch) == cache.keys() for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) > 3
    assert [samples(cache, seed=2).key(number) for number in range(40)] != keys


def test_latents_are_a_scaled_sample_of_the_posterior(cache):
    sample, moments = samples(cache)[0], cache.read(samples(cache).key(0)).tensors["latents"]
    mean, logvar = moments.chunk(2)
    standard = (sample["latents"].transpose(0, 1) / 0.7 - mean) / (0.5 * logvar).exp()
    assert sample["latents"].shape == (LATENT_FRAMES, 4, 8, 12)
    assert abs(standard.mean()) < 0.1 and abs(standard.std() - 1) < 0.1
    assert abs(sample["noise"].std() - 1) < 0.1


def test_the_image_is_in_the_first_frame_alone(cache):
    sample = samples(cache)[0]
    mean = cache.read(samples(cache).key(0)).tensors["image"][:4]
    assert sample["image"].shape == sample["latents"].shape and not sample["image"][1:].any()
    torch.testing.assert_close(sample["image"][0] / 0.7, mean[:, 0], atol=1.0, rtol=0)
    assert not torch.equal(sample["image"][0] / 0.7, mean[:, 0])


def test_dropout_of_images_and_captions(cache):
    empty = torch.zeros(16, 16)
    some = samples(cache, image_dropout=0.3, caption_dropout=0.6, no_caption={"text": empty})
    drawn = [some[number] for number in range(300)]
    assert abs(sum(not s["image"].any() for s in drawn) / 300 - 0.3) < 0.08
    assert abs(sum(not s["text"].any() for s in drawn) / 300 - 0.6) < 0.08
    assert equal({"noise": drawn[3]["noise"]}, {"noise": samples(cache)[3]["noise"]})  # dropout moves nothing else
    assert "image" not in samples(cache, small(in_channels=4))[0]


def test_noise_steps_are_uniform(cache):
    generator = small()
    generator.schedule = CogVideoXDDIMScheduler(num_train_timesteps=10)
    drawn = torch.stack([samples(cache, generator)[number]["timestep"] for number in range(500)])
    counts = drawn.bincount(minlength=10)
    assert len(counts) == 10 and counts.min() > 25 and drawn.dtype == torch.int64


def test_frames_are_padded_in_front_for_temporal_patches(cache):
    plain, padded = small(), small(patch_size_t=2)
    padded.scale = plain.scale = 1.0
    padded, plain = samples(cache, padded)[0], samples(cache, plain)[0]
    assert torch.equal(padded["latents"], torch.cat([plain["latents"][:1], plain["latents"]]))
    assert len(padded["noise"]) == len(padded["image"]) == LATENT_FRAMES + 1 and not padded["image"][1:].any()


def numbers(processes, per_process, steps=range(3), batch=8):
    return [list(BatchNumbers(steps, batch, per_process, rank, processes)) for rank in range(processes)]


@pytest.mark.parametrize(("processes", "per_process"), [(1, 1), (1, 4), (2, 1), (2, 2), (4, 2), (8, 1)])
def test_processes_share_the_same_global_batch(processes, per_process):
    ranks = numbers(processes, per_process)
    accumulation = 8 // (processes * per_process)
    for step in range(3):
        turns = [rank[step * accumulation : (step + 1) * accumulation] for rank in ranks]
        assert sorted(n for rank in turns for turn in rank for n in turn) == list(range(step * 8, step * 8 + 8))
    assert all(len(turn) == per_process for rank in ranks for turn in rank)


def test_going_on_skips_what_was_seen():
    assert numbers(2, 2, range(1, 3))[0] == numbers(2, 2)[0][2:]


@pytest.mark.parametrize(("processes", "per_process", "batch"), [(3, 1, 8), (2, 3, 8), (4, 4, 8)])
def test_a_batch_that_cannot_be_dealt(processes, per_process, batch):
    with pytest.raises(
        TrainerError, match=f"= {batch} is no multiple of run.per_process = {per_process} times {processes}"
    ):
        BatchNumbers(range(3), batch, per_process, 0, processes)


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_are_the_samples_in_their_order(cache, workers):
    some = samples(cache)
    steps = list(load_samples(some, BatchNumbers(range(1, 3), 4, 2), workers, pin=False))
    assert len(steps) == 2 and len(steps[0]) == 2
    assert torch.equal(steps[1][0]["noise"], torch.stack([some[8]["noise"], some[9]["noise"]]))


def test_workers_hand_tensors_over_however_deep_temporary_files_lie(cache, tmp_path, monkeypatch):
    """Through sockets, whose paths have room for about a hundred bytes."""
    deep = tmp_path / (100 * "d")
    deep.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(deep))
    monkeypatch.setitem(current_process()._config, "tempdir", None)
    monkeypatch.setattr(dataset, "DataLoader", partial(dataset.DataLoader, timeout=120))  # or it would wait forever
    (step,) = load_samples(samples(cache), BatchNumbers(range(1), 4, 2), workers=1, pin=False)
    assert torch.equal(step[0]["noise"][0], samples(cache)[0]["noise"]) and tempfile.gettempdir() == str(deep)


@pytest.mark.parametrize("generator", ["cogvideox", "wan"])
def test_samples_can_be_sent_to_workers_that_are_not_forked(tmp_path, generator):
    from lgf_trainer.generators.base import Generator
    from lgf_trainer.testing import make_tiny_pipeline, make_tiny_wan
    from trainer.training_data import wan_window

    make, window = {"cogvideox": (make_tiny_pipeline, random_window), "wan": (make_tiny_wan, wan_window)}[generator]
    make(tmp_path / "model")
    cache, model = make_cache(tmp_path / "cache", 4, window=window), Generator.read(str(tmp_path / "model"))
    data = samples(cache, model, caption_dropout=0.5, no_caption={"text": window(0)["text"].float()})
    sent = pickle.loads(pickle.dumps(data))
    assert sent.key(5) == data.key(5) and equal(sent[5], data[5])


@pytest.mark.parametrize("method", ["spawn", pytest.param("forkserver", marks=pytest.mark.slow)])
def test_workers_may_begin_in_any_way(cache, method):
    """Forked on Linux before Python 3.14, spawned on macOS, fork-served on Linux since."""
    before = multiprocessing.get_start_method()
    multiprocessing.set_start_method(method, force=True)
    try:
        ((batch,),) = load_samples(samples(cache), BatchNumbers(range(1), 2, 2), workers=1, pin=False)
    finally:
        multiprocessing.set_start_method(before, force=True)
    ((expected,),) = load_samples(samples(cache), BatchNumbers(range(1), 2, 2), workers=0, pin=False)
    assert equal(batch, expected)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_damaged_window_is_told_in_one_line(cache, workers):
    path = cache.path(samples(cache).key(1))
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(TrainerError, match="cannot be read") as error:
        list(load_samples(samples(cache), BatchNumbers(range(1), 4, 2), workers, pin=False))
    assert "Traceback" not in str(error.value) and "\n" not in str(error.value)


def test_a_window_without_a_target(tmp_path):
    cache = WindowCache(tmp_path, {})
    cache.write("k", {name: value for name, value in random_window(0).items() if name != "masks"}, {})
    with pytest.raises(TrainerError, match="has no 'masks'"):
        samples(cache)[0]


def test_seeds_are_mixed():
    seeds = [mix(a, b) for a in range(30) for b in range(30)]
    assert len({seed % 2**32 for seed in seeds}) == 900  # torch's generator keeps 32 bits
