"""Token relation losses for the tests that all families share."""

import torch

import lgf_kernels as lgf

LOSSES = {
    "token_relation": lambda student, teacher, **o: lgf.token_relation_loss(
        student, teacher, pair_weight=lgf.moalign_pair_weight(student.shape[1], device=student.device), **o
    ),
    "token_relation none": lambda student, teacher, **o: lgf.token_relation_loss(
        student,
        teacher,
        pair_weight=torch.ones(student.shape[1], student.shape[1], device=student.device),
        reduction="none",
        **o,
    ).sum(),
}
