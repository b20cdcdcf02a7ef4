"""Tables for terminals."""

from collections.abc import Sequence


def format_table(rows: Sequence[Sequence[str]]) -> str:
    """Return text with aligned columns, the first to the left and numbers to the right; the first row is the heading.

    Example:
        >>> print(format_table([["name", "x"], ["a", "1.00"]]))
        name     x
        ----------
        a     1.00
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join(
            cell.ljust(w) if i == 0 else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    ]
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]])
