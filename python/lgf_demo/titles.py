"""Names, labels and sources of the losses that `lgf demo --losses` compares: what its help shows, without importing torch."""

from typing import NamedTuple

#: Rows and columns of tokens for one that VideoREPA compares: 30 x 45 and 10 x 15.
REDUCTION = 3
POINTS = 256  # of a clip


class Title(NamedTuple):
    """What a loss is called.

    Attributes:
        label: in tables and pictures.
        source: the paper, with the weight that it gives.
    """

    label: str
    source: str


#: In the order of the table.
TITLES = {
    "none": Title("none (diffusion alone)", "-"),
    "lgf-kl": Title("LGF-KL", "SAM2VideoX, 0.5"),
    "lgf-l2": Title("LGF-l2", 'SAM2VideoX, "w/o KL", 0.5'),
    "videorepa": Title("token relations, full resolution", "VideoREPA, 0.5"),
    "videorepa-reduced": Title(
        f"token relations of {REDUCTION} x {REDUCTION} cells", "VideoREPA as published, 0.5"
    ),
    "moalign": Title("soft token relations", "MoAlign, stage 2, 0.5"),
    "gram": Title("Gram matrices of frames", "DINOv3, 2"),
    "patch-cosine": Title("patch cosine, both teachers joined", "REPA, Align4Gen, 0.5"),
    "points": Title(f"point correspondence, {POINTS} tracks", "Track4Gen, 8 in its own units"),
}  # fmt: skip
