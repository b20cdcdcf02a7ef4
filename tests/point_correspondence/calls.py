"""Point correspondence losses for the tests that all families share."""

import torch

import lgf_kernels as lgf


def tracks_of(teacher):
    """Return queries (B, 8, 3), targets (B, 8, T, 2) and weights (B, 8, T) made of a teacher (B, T, H, W, C)."""
    T, H, W = teacher.shape[1:4]
    numbers = teacher.flatten(1).sigmoid()
    queries = numbers[:, :24].unflatten(1, (8, 3)) * torch.tensor([T, H - 1, W - 1], device=teacher.device)
    queries = torch.cat([queries[..., :1].floor(), queries[..., 1:]], -1)
    return queries, 3 * numbers[:, : 16 * T].unflatten(1, (8, T, 2)), numbers[:, : 8 * T].unflatten(1, (8, T))


LOSSES = {
    "point_correspondence": lambda student, teacher, **o: (
        lgf.point_correspondence(student, tracks_of(teacher)[0], temperature=0.3, **o).square().mean()
    ),
    "point_correspondence_loss": lambda student, teacher, **o: lgf.point_correspondence_loss(
        student, *tracks_of(teacher), temperature=0.3, **o
    ),
    "point_correspondence_loss none": lambda student, teacher, **o: lgf.point_correspondence_loss(
        student, *tracks_of(teacher)[:2], window=1, distance="l1", reduction="none", **o
    ).sum(),
}
