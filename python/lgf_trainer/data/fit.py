"""How a picture becomes one of another size: it is resized, then its centre is cut out."""

from fractions import Fraction
from typing import NamedTuple

from torch import Tensor

Size = tuple[int, int]  # height, width in pixels


class Fit(NamedTuple):
    """The source's size, the size it is resized to, and the size that is cut out of that."""

    source: Size
    resized: Size
    size: Size

    @classmethod
    def cover(cls, source: Size, size: Size) -> "Fit":
        """Keep the aspect ratio, and lose what sticks out on two sides."""
        scale = max(Fraction(s, o) for s, o in zip(size, source, strict=True))
        height, width = (max(s, round(o * scale)) for s, o in zip(size, source, strict=True))
        return cls(source, (height, width), size)

    @classmethod
    def stretch(cls, source: Size, size: Size) -> "Fit":
        """Keep the whole picture, and give up its aspect ratio."""
        return cls(source, size, size)

    def box(self, x0: float, y0: float, x1: float, y1: float) -> tuple[float, float, float, float] | None:
        """A box of the source as one of the result, or None if nothing of it is left there."""
        (top, left), (height, width) = self._corner(), self.size
        scale_y, scale_x = (r / s for r, s in zip(self.resized, self.source, strict=True))
        x0, x1 = (min(max(x * scale_x - left, 0.0), float(width)) for x in (x0, x1))
        y0, y1 = (min(max(y * scale_y - top, 0.0), float(height)) for y in (y0, y1))
        return (x0, y0, x1, y1) if x0 < x1 and y0 < y1 else None

    def cut(self, resized: Tensor) -> Tensor:
        """The centre (height, width, ...) of a resized picture."""
        (top, left), (height, width) = self._corner(), self.size
        return resized[top : top + height, left : left + width]

    def _corner(self) -> Size:
        return (self.resized[0] - self.size[0]) // 2, (self.resized[1] - self.size[1]) // 2
