"""How the kernel is cut and scheduled: a small table, made ahead of time.

The choice depends on the type and the channels, never on the number of tokens or frames: a Triton kernel takes seconds to
compile. The first row of each entry is what runs; the others are what LGF_AUTOTUNE=1 times against it. The first rows were
chosen for loads of 16 bytes, a token for each warp, and by what they compile to (`make kernel-report`): no spilled registers.
They have yet to be timed.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch

from ..core.numerics import next_power_of_2


class Tokens(NamedTuple):
    """ROWS tokens of a frame, BLOCK_C channels at a time."""

    ROWS: int
    BLOCK_C: int
    num_warps: int
    num_stages: int


#: By bytes of an element of the student.
TOKENS = {
    2: [Tokens(4, 256, 4, 1), Tokens(8, 256, 8, 1), Tokens(2, 512, 4, 1), Tokens(4, 256, 2, 1)],
    4: [Tokens(4, 128, 4, 1), Tokens(4, 256, 4, 1), Tokens(8, 128, 8, 1)],
    8: [Tokens(4, 64, 4, 1), Tokens(4, 128, 4, 1)],
}


def tokens(channels: Sequence[int], dtype: torch.dtype) -> list[Tokens]:
    """Return the rows for a student of this type and teachers of so many channels."""
    most = max(16, next_power_of_2(max(channels)))
    return [row._replace(BLOCK_C=min(row.BLOCK_C, most)) for row in TOKENS[dtype.itemsize]]
