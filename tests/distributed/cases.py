"""Every kind of shards in groups of one to four processes, against one process with the whole video, in float64.

python cases.py STORE RANK OUTPUT      one of four processes; the first writes the errors
"""

import datetime
import itertools
import json
import sys
from pathlib import Path

import torch
import torch.distributed as dist

import lgf_kernels as lgf
from lgf_kernels import distributed

WORLD = 4
GRID = T, H, W = 5, 7, 6
KINDS = {kind.__name__: kind for kind in (distributed.Frames, distributed.Rows, distributed.Tokens)}
#: Of weights, the sum of which float64 cannot hold.
LARGE = 1e308
OPTIONS = {
    "plain": {},
    "weights": {"weighted": True, "temperature": 0.3, "size": LARGE},
    "other": {
        "window": 3,
        "boundary": "zero",
        "divergence": "l2",
        "similarity": "dot",
        "reduction": "sum",
        "teachers": 2,
    },
    "wide": {"window": 11, "weighted": True},
}


def bounds_of(kind, ranks: int) -> dict[str, distributed.Shards]:
    """Even parts; nearly all in the first one, with empty ones behind it; the reverse; and all in the first one."""
    size = kind.size_of(GRID)
    places = (0, *[size - 1] * (ranks - 1), size)
    return {
        "even": kind.even(GRID, ranks),
        "uneven": kind(GRID, places),
        "reversed": kind(GRID, tuple(size - place for place in reversed(places))),
        "alone": kind(GRID, (0, *[size] * ranks)),
    }


def cut(shards, values: torch.Tensor, rank: int, queries: bool = False, direction: str = "forward") -> torch.Tensor:
    """This process's part of the student (B, T, H, W, C), or of what belongs to the queries (B, T - 1, H, W, ...)."""
    lo, hi = shards.own(rank)
    if isinstance(shards, distributed.Frames):
        return values[:, lo:hi]
    if isinstance(shards, distributed.Rows):
        return values[:, :, lo:hi]
    if queries:
        lo, hi = shards.query_range(rank, direction)
        first = 0 if direction == "forward" else H * W
        return values.flatten(1, 3)[:, lo - first : hi - first]
    return values.flatten(1, 3)[:, lo:hi]


def difference(share, part, loss, gradient, rank, group, shards=None) -> float:
    """The largest error of the sum of the shares and of the gradient of this part, over the group."""
    share.backward()
    errors = torch.stack(
        [(distributed.exchange.summed(share.detach(), group) - loss).abs().max(), torch.zeros_like(loss.max())]
    )
    expected = gradient if shards is None else cut(shards, gradient, rank)
    if part.numel():
        errors[1] = (part.grad - expected).abs().max()
    dist.all_reduce(errors, dist.ReduceOp.MAX, group=group)
    return errors.max().item()


def flow(shards, rank, group, direction, teachers=1, weighted=False, dtype=torch.float64, size=1.0, **options):
    of_window = {name: options[name] for name in ("window", "similarity", "boundary") if name in options}
    torch.manual_seed(0)
    student = torch.randn(2, *GRID, 5, dtype=dtype)
    features = [torch.randn(2, *GRID, 4, dtype=dtype) for _ in range(teachers)]
    logits = [lgf.local_gram_flow(each, direction=direction, **of_window) for each in features]
    weight = torch.rand(2, T - 1, H, W, dtype=dtype).mul(2).sub(0.5).clamp(min=0) * size if weighted else None
    options |= {"teacher_weights": [0.3, 0.7][:teachers], "direction": direction}
    whole = student.clone().requires_grad_()
    loss = lgf.lgf_kl_loss_from_logits(whole, logits, token_weight=weight, **options)
    loss.backward()
    part = cut(shards, student, rank).clone().requires_grad_()
    share = distributed.sharded_lgf_kl_loss(
        part,
        [cut(shards, each, rank, True, direction) for each in logits],
        shards,
        token_weight=None if weight is None else cut(shards, weight, rank, True, direction),
        group=group,
        **options,
    )
    return share, part, loss.detach(), whole.grad


def relation(shards, rank, group, whole_teacher: bool, reduction: str):
    torch.manual_seed(0)
    student, teacher = (torch.randn(2, *GRID, channels, dtype=torch.float64) for channels in (5, 4))
    pair_weight = torch.rand(T, T, dtype=torch.float64)
    pair_weight[0, 2:] = pair_weight[2:, 0] = 0
    whole = student.clone().requires_grad_()
    options = {"pair_weight": pair_weight, "margin": 0.05, "reduction": reduction}
    loss = lgf.token_relation_loss(whole, teacher, **options)
    loss.sum().backward()
    part = cut(shards, student, rank).clone().requires_grad_()
    given = teacher if whole_teacher else cut(shards, teacher, rank)
    share = distributed.sharded_token_relation_loss(part, given, shards, group=group, **options)
    return share, part, loss.detach(), whole.grad


def points(shards, rank, group, count: int, weighted: bool, reduction: str, **options):
    torch.manual_seed(0)
    features = torch.randn(2, *GRID, 5, dtype=torch.float64)
    places = torch.rand(2, count, 3, dtype=torch.float64) * torch.tensor([T, H - 1, W - 1])
    places[..., 0].floor_()
    targets = torch.rand(2, count, T, 2, dtype=torch.float64) * 6
    weight = torch.rand(2, count, T).gt(0.3).double() * LARGE if weighted else None
    options |= {"reduction": reduction, "temperature": 0.3}
    whole = features.clone().requires_grad_()
    loss = lgf.point_correspondence_loss(whole, places, targets, weight, **options)
    loss.backward()
    part = cut(shards, features, rank).clone().requires_grad_()
    share = distributed.sharded_point_correspondence_loss(part, places, targets, weight, shards, group=group, **options)
    return share, part, loss.detach(), whole.grad


def rounded(ranks: int, rank, group) -> float:
    """How many times the error of one process, against float64, the points' loss has in bfloat16, of queries between tokens."""
    shards = distributed.Frames.even(GRID, ranks)
    torch.manual_seed(0)
    features, targets = torch.randn(2, *GRID, 16).bfloat16(), torch.rand(2, 9, T, 2) * 6
    places = torch.rand(2, 9, 3) * torch.tensor([T, H - 1, W - 1])
    places[..., 0].floor_()
    truth, alone = (lgf.point_correspondence_loss(each, places, targets) for each in (features.double(), features))
    part = cut(shards, features, rank)
    share = distributed.sharded_point_correspondence_loss(part, places, targets, None, shards, group=group)
    error, least = (distributed.exchange.summed(share, group) - truth).abs(), 1e-7 * truth
    return (error / (alone - truth).abs().clamp(min=least)).item()


def far(ranks: int, rank, group) -> float:
    """The relative error of the points' loss where float32 holds the mean of the distances and not their sum."""
    shards = distributed.Frames.even(GRID, ranks)
    torch.manual_seed(0)
    features, targets = torch.randn(1, *GRID, 4), torch.full((1, 99, T, 2), 1e37)
    places = torch.zeros(1, 99, 3)
    share = distributed.sharded_point_correspondence_loss(
        cut(shards, features, rank), places, targets, None, shards, group=group
    )
    loss = lgf.point_correspondence_loss(features, places, targets)
    return (distributed.exchange.summed(share, group) / loss - 1).abs().item()


def cosine(shards, rank, group, weighted: bool, frames: bool):
    torch.manual_seed(0)
    student = torch.randn(2, *GRID, 5, dtype=torch.float64)
    teachers = [torch.randn(2, *GRID, channels, dtype=torch.float64) for channels in (3, 2)]
    weight = torch.rand(2, *GRID, dtype=torch.float64) * LARGE if weighted else None
    options = {"teacher_weights": [0.3, 0.7]}
    of_frames = lgf.crepa_frame_weight(T).double() if frames else None
    whole = student.clone().requires_grad_()
    loss = lgf.patch_cosine_loss(whole, teachers, token_weight=weight, frame_weight=of_frames, **options)
    loss.backward()
    part = cut(shards, student, rank).clone().requires_grad_()
    if frames:
        options["frame_weight"] = of_frames[slice(*shards.own(rank))]
    share = distributed.sharded_patch_cosine_loss(
        part,
        teachers if frames else [cut(shards, teacher, rank) for teacher in teachers],
        token_weight=None if weight is None else cut(shards, weight, rank),
        group=group,
        **options,
    )
    return share, part, loss.detach(), whole.grad


def run(rank: int) -> dict[str, float]:
    """Return case -> the largest error in its group, of all cases of the groups that this process belongs to."""
    found = {}
    groups = {ranks: dist.new_group(list(range(ranks))) for ranks in range(1, WORLD + 1)}
    for ranks, group in groups.items():
        if rank >= ranks:
            continue
        for name, kind in KINDS.items():
            for how, shards in bounds_of(kind, ranks).items():
                for direction, (title, options) in itertools.product(("forward", "backward"), OPTIONS.items()):
                    results = flow(shards, rank, group, direction, **options)
                    found[f"{ranks} {name} {how} {direction} {title}"] = difference(*results, rank, group, shards)
        for name, kind in KINDS.items():
            for how, shards in bounds_of(kind, ranks).items():
                results = cosine(shards, rank, group, weighted=how != "even", frames=False)
                found[f"{ranks} cosine {how} {name}"] = difference(*results, rank, group, shards)
        for how, shards in bounds_of(distributed.Frames, ranks).items():
            results = cosine(shards, rank, group, weighted=how != "even", frames=True)
            found[f"{ranks} cosine {how} of frames"] = difference(*results, rank, group, shards)
            for whole_teacher, reduction in ((True, "mean"), (False, "sum")):
                results = relation(shards, rank, group, whole_teacher, reduction)
                found[f"{ranks} relation {how} {reduction}"] = difference(*results, rank, group, shards)
            for count, weighted, reduction, more in (
                (9, True, "mean", {}),
                (50, False, "sum", {"window": 2}),
                (0, True, "sum", {}),
            ):
                results = points(shards, rank, group, count, weighted, reduction, **more)
                found[f"{ranks} points {how} {count}"] = difference(*results, rank, group, shards)
        found[f"rounded {ranks}"], found[f"far {ranks}"] = rounded(ranks, rank, group), far(ranks, rank, group)
    again = [flow(distributed.Rows.even(GRID, WORLD), rank, None, "forward", dtype=torch.float32) for _ in range(2)]
    for share, *_ in again:
        share.backward()
    (one, its_part, *_), (other, others_part, *_) = again
    found["two runs"] = float(not (torch.equal(one, other) and torch.equal(its_part.grad, others_part.grad)))
    return found


def main(store: str, rank: int, output: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{store}", rank=rank, world_size=WORLD, timeout=datetime.timedelta(seconds=600)
    )
    found = run(rank)
    if rank == 0:
        Path(output).write_text(json.dumps(found))
    dist.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), sys.argv[3])
