"""Inputs of token relations on the model of a GPU, and their comparison with the oracle."""

import torch
from models.cuda import launch
from support.numerics import features

import lgf_kernels as lgf

TILE = 128  # of the tensor cores
#: An upstream gradient that takes a small one to where float16 has all its digits.
UPSTREAM = torch.tensor(2.0**12, dtype=torch.float64)


def inputs(shape, teacher_channels, dtype, teacher_dtype=None):
    return features(*shape, dtype=dtype), features(*shape[:-1], teacher_channels, dtype=teacher_dtype or dtype)


def against_reference(student, teacher, c=None, **options):
    options = {"pair_weight": lgf.moalign_pair_weight(student.shape[1]) if c is None else c, **options}
    options.setdefault("upstream", UPSTREAM)
    launch.against_reference(lgf.token_relation_loss, student, teacher, **options)
