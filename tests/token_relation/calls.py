"""Token relation losses for the tests that all families share."""

import torch

import lgf_kernels as lgf


def ones(student: torch.Tensor) -> torch.Tensor:
    return torch.ones(student.shape[1], student.shape[1], device=student.device)


LOSSES = {
    "token_relation": lambda student, teacher, **o: lgf.token_relation_loss(
        student, teacher, pair_weight=lgf.moalign_pair_weight(student.shape[1], device=student.device), **o
    ),
    "token_relation none": lambda student, teacher, **o: lgf.token_relation_loss(
        student, teacher, pair_weight=ones(student), reduction="none", **o
    ).sum(),
    "token_relation gram": lambda student, teacher, **o: lgf.token_relation_loss(
        student, teacher, pair_weight=ones(student), distance="l2", **o
    ),
    "token_relation clamped": lambda student, teacher, **o: lgf.token_relation_loss(
        student, teacher, pair_weight=ones(student), distance="l2", negatives="clamp", similarity="dot", **o
    ),
}
