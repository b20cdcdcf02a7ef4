"""Losses over shards are those of one process, in groups of one to four processes with gloo, and say what is wrong."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import shard_costs
import torch
import torch.distributed as dist
from support.messages import check

from lgf_kernels import distributed
from lgf_kernels.distributed.exchange import anyone_idle
from lgf_kernels.distributed.token_relation import pair_owners

from .cases import GRID, KINDS, OPTIONS, WORLD

pytestmark = pytest.mark.skipif(not (dist.is_available() and dist.is_gloo_available()), reason="this torch has no gloo")
CASES = Path(__file__).with_name("cases.py")


def started(*words, **environment) -> subprocess.Popen:
    paths = os.pathsep.join([str(CASES.parents[2]), str(CASES.parents[1])])
    environment = os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1"} | environment
    command = [sys.executable, "-P", *map(str, words)]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.fixture(scope="module")
def errors(tmp_path_factory) -> dict[str, float]:
    place = tmp_path_factory.mktemp("shards")
    processes = [started(CASES, place / "store", rank, place / "errors.json") for rank in range(WORLD)]
    said = [process.communicate(timeout=900)[1] for process in processes]
    assert all(process.returncode == 0 for process in processes), "\n".join(said)
    return json.loads((place / "errors.json").read_text())


@pytest.mark.parametrize("kind", [*KINDS, "relation", "points", "cosine"])
@pytest.mark.parametrize("ranks", range(1, WORLD + 1))
def test_the_sum_of_shares_and_every_gradient_are_those_of_one_process(errors, ranks, kind):
    found = {name: error for name, error in errors.items() if name.startswith(f"{ranks} {kind} ")}
    assert len(found) == 4 * {"relation": 2, "points": 3, "cosine": 4}.get(kind, 2 * len(OPTIONS))
    # The losses that are summed are some hundreds.
    assert all(error < 1e-12 * 500 for error in found.values()), found  # NaN is an error, too


@pytest.mark.parametrize("ranks", range(1, WORLD + 1))
def test_points_between_tokens_are_as_exact_in_half_precision_as_in_one_process(errors, ranks):
    assert errors[f"rounded {ranks}"] <= 2, errors


@pytest.mark.parametrize("ranks", range(1, WORLD + 1))
def test_the_mean_of_far_targets_is_finite_where_their_sum_is_not(errors, ranks):
    assert errors[f"far {ranks}"] < 1e-5, errors


def test_two_runs_are_equal_to_the_bit(errors):
    assert errors["two runs"] == 0


DIES = """
import datetime, os, sys, torch, torch.distributed as dist
from lgf_kernels.distributed import halo_exchange, sharded_patch_cosine_loss
rank = int(sys.argv[2])
dist.init_process_group("gloo", init_method=f"file://{sys.argv[1]}", rank=rank, world_size=2,
                        timeout=datetime.timedelta(seconds=60))
dist.barrier()
if rank == 1:
    os._exit(1)
if sys.argv[3] == "halo":
    halo_exchange(torch.zeros(1, 3), 0, [(0, 1), (1, 2)], [(0, 2), (0, 2)])
else:
    sharded_patch_cosine_loss(torch.ones(1, 3), torch.ones(1, 3), token_weight=torch.ones(1))
"""


@pytest.mark.parametrize("call", ["halo", "sum"])
def test_a_process_that_dies_ends_the_others(tmp_path, call):
    lives, dies = (started("-c", DIES, tmp_path / "store", rank, call) for rank in range(2))
    _, said = lives.communicate(timeout=300)  # of which the start of two processes takes most where others compute
    dies.communicate()
    assert lives.returncode != 0 and "an exchange with the other processes failed. One of them has ended" in said, said


def test_costs_are_those_of_what_is_sent_and_the_page_shows_them():
    """An equal part of a frame, a window of 7, 256 channels of 2 bytes: as counted by hand."""
    by_hand = {"frames": 30 * 45 * 512, "rows": 6 * 13 * 45 * 512, "tokens": (30 * 45 + 3 * 46) * 512}
    found = shard_costs.rows({"CogVideoX": (13, 30, 45)}, [8], 256, 7, 2)
    assert {row[1]: row[3] for row in found if row[1] in by_hand} == {k: f"{v / 1e6:.2f}" for k, v in by_hand.items()}
    whole = shard_costs.table(shard_costs.rows(shard_costs.GRIDS, [8, 16, 32, 64], 256, 7, 2))
    assert whole in (CASES.parents[2] / "docs" / "distributed.md").read_text()


def test_rows_and_tiles_without_an_own_query_are_not_counted():
    """Parts of 4 and 3 of 30 rows lie between 3 others: in 10 rows, of which the first 8 are a tile's; 45 columns are 6 tiles."""
    canvas, rows, tiles = shard_costs.work(distributed.Rows.even((13, 30, 45), 8), 3, (8, 8))
    assert (canvas, rows, tiles) == (10 * 8 / 30, 4 * 8 / 30, 6 * 8 / (4 * 6))
    # The last part has all but the first 3 of the 12 x 30 rows of queries, and the fourth but for a token.
    shards = distributed.Tokens((13, 30, 45), (0, 45, 45 * 3 + 1, 13 * 30 * 45))
    _, rows, _ = shard_costs.work(shards, 3, (8, 8))
    assert rows == (12 * 30 - 3) * 3 / (12 * 30)


def test_every_pair_of_parts_has_one_owner_and_all_have_as_many():
    for ranks in (1, 2, 3, 4, 5, 8):
        owners = pair_owners(distributed.Frames.even((2 * ranks, 1, 1), ranks))
        assert torch.equal(owners, owners.T)
        counts = owners.flatten().bincount(minlength=ranks)
        assert counts.max() - counts.min() <= 8 and counts.sum() == 4 * ranks**2


def test_a_process_without_anything_to_exchange_is_seen():
    """NCCL connects a group at its first call, which such a process would not make."""
    held = [(0, 2), (2, 4), (4, 4)]
    assert anyone_idle(held, [(0, 3), (2, 4), (4, 4)]) and anyone_idle(held, held)
    assert not anyone_idle(held, [(0, 3), (2, 4), (3, 4)])


@pytest.fixture
def alone(tmp_path):
    dist.init_process_group("gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def test_without_a_group_the_way_out_is_said():
    words = ["there is no process group. Start the program with torchrun and call"]
    check(lambda: distributed.gather(torch.zeros(2), 0, (0, 2)), RuntimeError, words)


FRAMES = distributed.Frames.even(GRID, 1)
STUDENT, LOGITS = torch.randn(1, *GRID, 4), torch.randn(1, GRID[0] - 1, *GRID[1:], 49)
NONE, NEEDS_GRAD = STUDENT[:, :0], LOGITS.clone().requires_grad_()
POINTS = torch.zeros(1, 3, 3), torch.zeros(1, 3, GRID[0], 2), None


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: distributed.sharded_lgf_kl_loss(STUDENT, LOGITS, GRID), "`shards` must be Frames, Rows or Tokens"),
        (lambda: distributed.sharded_lgf_kl_loss(STUDENT, LOGITS, distributed.Rows.even(GRID, 2)),
         "`shards` has 2 parts, and the group 1 processes. Make it with Rows.even"),
        (lambda: distributed.sharded_lgf_kl_loss(STUDENT[:, :3], LOGITS, FRAMES), r"`student` must have the shape"),
        (lambda: distributed.sharded_lgf_kl_loss(STUDENT, LOGITS[..., :25], FRAMES), r"`teacher_logits` must have the shape"),
        (lambda: distributed.sharded_lgf_kl_loss(STUDENT, LOGITS, FRAMES, direction="both"), "add the losses of either direction"),
        (lambda: distributed.sharded_lgf_kl_loss(STUDENT, LOGITS, FRAMES, reduction="none"), "`reduction` must be one of"),
        (lambda: distributed.sharded_lgf_kl_loss(STUDENT, LOGITS, FRAMES, token_weight=LOGITS), "`token_weight` must have the"),
        (lambda: distributed.sharded_patch_cosine_loss(STUDENT, STUDENT, token_weight=STUDENT[..., 0] + 0j),
         "sharded_patch_cosine_loss: `token_weight` must be real"),
        (lambda: distributed.sharded_point_correspondence_loss(STUDENT, *POINTS[:2], POINTS[1][..., 0] + 0j, FRAMES),
         "sharded_point_correspondence_loss: `weight` must be real"),
        (lambda: distributed.sharded_token_relation_loss(STUDENT, STUDENT, distributed.Rows.even(GRID, 1), pair_weight=None),
         "`shards` must be Frames of lgf_kernels.distributed, got Rows"),
        (lambda: distributed.sharded_token_relation_loss(STUDENT[:, :2], STUDENT, FRAMES, pair_weight=None),
         "`student` must have 5 frames in its second dimension"),
        (lambda: distributed.sharded_point_correspondence_loss(STUDENT, POINTS[0] - 1, *POINTS[1:], FRAMES),
         "t must be a whole number from 0 to 4"),
        (lambda: distributed.sharded_point_correspondence_loss(STUDENT, *POINTS[:1], POINTS[1][:, :, :2], None, FRAMES),
         "`targets` must have the shape"),
        (lambda: distributed.halo_exchange(STUDENT, 1, [(0, 5)], [(0, 6)]), "is not all in what the processes have"),
        (lambda: distributed.halo_exchange(STUDENT, 1, [(0, 4)], [(0, 4)]), "`tensor` has 5 places in dimension 1"),
        (lambda: distributed.halo_exchange(STUDENT, 1, [(0, 5)] * 2, [(0, 5)] * 2), "for each of the group's 1 processes, got 2"),
        (lambda: distributed.Rows(GRID, (0, 5)), "`bounds` must ascend from 0 to 7, the rows of the whole"),
        (lambda: distributed.Frames(GRID, (0, 3, 2, 5)), "`bounds` must ascend from 0 to 5"),
        (lambda: distributed.Tokens((5, 0, 3), (0, 0)), "`grid` must be three sizes of at least 1"),
        (lambda: distributed.Tokens.even((5, 3), 2), "`grid` must be three sizes of at least 1"),
        (lambda: distributed.Tokens.even(GRID, 0), "`ranks` must be at least 1"),
        (lambda: distributed.Frames(GRID, 5), "`bounds` must be a sequence of integers"),
        (lambda: distributed.sharded_lgf_kl_loss(STUDENT, LOGITS, FRAMES, logits_direction="backward"),
         "there is no option `logits_direction` of parts"),
        (lambda: distributed.sharded_lgf_kl_loss(STUDENT, LOGITS, FRAMES, temperature=-1.0), "sharded_lgf_kl_loss: `temperature`"),
        (lambda: distributed.sharded_lgf_kl_loss(STUDENT, LOGITS, FRAMES, teacher_weights=[1.0, 2.0]), "1 expected, got 2"),
        (lambda: distributed.sharded_lgf_kl_loss(STUDENT, LOGITS, FRAMES, group="world"), "`group` must be a process group"),
        (lambda: distributed.sharded_lgf_kl_loss(STUDENT[:, :1], LOGITS[:, :0], distributed.Frames.even((1, *GRID[1:]), 1)),
         "`shards` must have at least 2 frames"),
        (lambda: distributed.sharded_lgf_kl_loss(STUDENT[:0], LOGITS[:0], FRAMES), "at least one video and one channel"),
        (lambda: distributed.sharded_lgf_kl_loss(STUDENT.long(), LOGITS, FRAMES), "sharded_lgf_kl_loss: `student` must be float32"),
        (lambda: distributed.sharded_token_relation_loss(STUDENT, STUDENT, FRAMES, pair_weight=None),
         "`pair_weight` must be a torch.Tensor, got NoneType"),
        (lambda: distributed.sharded_token_relation_loss(STUDENT, STUDENT, FRAMES, pair_weight=torch.ones(1, GRID[0])),
         "`pair_weight` must have shape (F, F) = (5, 5), got (1, 5)"),
        (lambda: distributed.sharded_point_correspondence_loss(STUDENT, None, *POINTS[1:], FRAMES), "`queries` must be a torch"),
        (lambda: distributed.sharded_point_correspondence_loss(STUDENT, POINTS[0][0], *POINTS[1:], FRAMES), "`queries` must have"),
        (lambda: distributed.sharded_point_correspondence_loss(STUDENT, *POINTS, FRAMES, delta=0.0), "dence_loss: `delta`"),
        (lambda: distributed.sharded_patch_cosine_loss(STUDENT, STUDENT, window=3), "there is no option `window`"),
        # What a process without tokens would not notice, and would wait for the others, which do: said before anything travels.
        (lambda: distributed.sharded_lgf_kl_loss(STUDENT, LOGITS.int(), FRAMES), "sharded_lgf_kl_loss: `teacher_logits` must be"),
        (lambda: distributed.sharded_lgf_kl_loss(STUDENT, NEEDS_GRAD, FRAMES), "lgf_kl_loss: `teacher_logits` requires grad"),
        (lambda: distributed.sharded_lgf_kl_loss(STUDENT, LOGITS, FRAMES, token_weight=NEEDS_GRAD[..., 0]),
         "sharded_lgf_kl_loss: `token_weight` requires grad"),
        (lambda: distributed.sharded_token_relation_loss(STUDENT, STUDENT, FRAMES, pair_weight=-torch.ones(5, 5)),
         "sharded_token_relation_loss: `pair_weight` must be >= 0"),
        (lambda: distributed.sharded_point_correspondence_loss(STUDENT, NEEDS_GRAD[0, :1, 0, :3, :3], *POINTS[1:], FRAMES),
         "sharded_point_correspondence_loss: `queries` requires grad"),
        (lambda: distributed.sharded_patch_cosine_loss(NONE, NONE, teacher_weights=[-1.0]), "`teacher_weights[0]` must be"),
        (lambda: distributed.sharded_patch_cosine_loss(NONE, [NONE, NONE]), "the student's channels must be those of all teachers"),
        (lambda: distributed.sharded_patch_cosine_loss(NONE, NONE.int()), "sharded_patch_cosine_loss: `teachers` must be float32"),
        (lambda: distributed.sharded_patch_cosine_loss(NONE, STUDENT, frame_weight=torch.ones(0, 4)), "`frame_weight` must have"),
        (lambda: distributed.gather(STUDENT, 1, (0, 3, 5)), "gather: `bounds` must be 2 places for the group's 1 processes"),
        (lambda: distributed.halo_exchange(STUDENT, 5, [(0, 5)], [(0, 5)]), "`dim` must be a dimension of `tensor`, which has 5"),
        (lambda: distributed.halo_exchange(STUDENT, 1, [(0, 5, 1)], [(0, 5)]), "`have` must be pairs (lo, hi)"),
    ],
)  # fmt: skip
def test_messages(alone, call, message):
    check(call, (TypeError, ValueError), [message])
