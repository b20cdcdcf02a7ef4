"""Report of an extraction: what was made, what was there, and what was left out and why."""

import json
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path

from ..runtime.errors import TrainerError
from ..runtime.files import write_atomically

SHOWN = 5  # entries for each reason; the file has all


class Skipped(TrainerError):
    """Error for a video or window that is left out.

    Args:
        reason: the kind of trouble, in the same words for all of its kind.
        detail: what it is here, and what could be done.
    """

    def __init__(self, reason: str, detail: str):
        super().__init__(detail)
        self.reason, self.detail = reason, detail


@dataclass
class Report:
    """Result of an extraction by one or more processes."""

    videos: int = 0
    written: list[str] = field(default_factory=list)  # keys of windows
    present: list[str] = field(default_factory=list)  # that were there already
    damaged: int = 0  # that were there but damaged, and were made again
    outdated: int = 0  # that were there, of other frames than are chosen today, and were made again
    bytes: int = 0
    seconds: float = 0.0
    skipped: list[tuple[str, str, str]] = field(default_factory=list)  # what, reason, detail

    def skip(self, what: str, skipped: Skipped) -> None:
        self.skipped.append((what, skipped.reason, skipped.detail))

    @classmethod
    def merged(cls, reports: Iterable["Report"]) -> "Report":
        """Return the report of several processes that ran at the same time."""
        total = cls()
        for report in reports:
            for name in ("videos", "damaged", "outdated", "bytes"):
                setattr(total, name, getattr(total, name) + getattr(report, name))
            for name in ("written", "present", "skipped"):
                setattr(total, name, sorted(getattr(total, name) + getattr(report, name)))
            total.seconds = max(total.seconds, report.seconds)
        return total

    def save(self, path: Path) -> None:
        write_atomically(path, json.dumps(asdict(self), indent=1).encode())

    def text(self) -> str:
        """Return a few lines for people."""
        again = f", {self.damaged} of them because what was there was damaged" if self.damaged else ""
        again += f", {self.outdated} because an earlier version had chosen other frames" if self.outdated else ""
        lines = [
            f"{self.videos} videos: {len(self.written)} windows written{again}, {len(self.present)} were there already; "
            f"{self.bytes / 1e6:.1f} MB in {self.seconds:.1f} s"
        ]
        by_reason = defaultdict(list)
        for what, reason, detail in self.skipped:
            by_reason[reason].append(f"    {what}: {detail}")
        for reason, entries in sorted(by_reason.items()):
            lines += [f"  left out, {reason}: {len(entries)}", *entries[:SHOWN]]
            if len(entries) > SHOWN:
                lines.append(f"    ... and {len(entries) - SHOWN} more")
        return "\n".join(lines)
