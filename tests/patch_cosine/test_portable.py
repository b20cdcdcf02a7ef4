"""The portable backend of patch cosine by itself: the chunks in which it takes the tokens."""

import pytest
import torch

from lgf_kernels.patch_cosine import portable

SHAPES = [(1, 1, 1, 17550), (1, 13, 30, 45), (3, 1, 1, 1), (2, 49, 2, 3), (1, 1, 7, 1000)]


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize("frames", [False, True])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_chunks_hold_every_token_once_and_keep_to_the_budget(shape, frames, device):
    """Of 4 MiB on a CPU and 64 elsewhere, with all that is made of a chunk's features in float32."""
    C, count = 1280, torch.zeros(shape)
    student = torch.empty(*shape, C, dtype=torch.bfloat16, device="meta")
    student = student if device == "meta" else torch.empty((), dtype=torch.bfloat16).expand(*shape, C)
    budget = 2**22 if device == "cpu" else 2**26
    places = list(portable.chunks(student, [student], torch.ones(shape[1], shape[1]) if frames else None))
    for place in places:
        count[place] += 1
        tokens = count[place].numel()
        assert 6 * 4 * C * tokens <= budget or tokens == (shape[1] if frames else 1)
    assert (count == 1).all()
    least = 6 * 4 * C * count.numel() / budget
    assert len(places) <= max(shape[0], 4 * least + shape[0] * (1 if frames else shape[1]))
