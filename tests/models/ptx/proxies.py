"""Fences between two ways to shared memory: that of loads and stores, and that of asynchronous products."""

import numpy as np

from .memory import MANY_WARPS, Fault, Memory, concurrent


class Proxies:
    """What asynchronous products may read of shared memory: what was written before a fence (fence.proxy.async).

    The fence is one by the warp that wrote, or one by the warps that read, after a barrier. Memory counts time in fences.
    """

    def __init__(self, shared: Memory, warps: int, warps_of_block: int):
        self.shared, self.warps_of_block = shared, warps_of_block
        self.fenced_at = np.zeros(warps, np.int64)  # the time of a warp's last fence,
        self.fenced_by = np.full(warps, -1)  # and its stamp

    def fence(self, warps: np.ndarray, stamps: np.ndarray) -> None:
        self.shared.time += 1
        self.fenced_at[warps] = self.shared.time
        self.fenced_by[warps] = stamps

    def check(self, granules: np.ndarray, who: np.ndarray, first_warps: np.ndarray) -> None:
        """Check and note reads of granules (n, count) by warpgroups: the stamps and the numbers of their first warps."""
        shared, who = self.shared, (who | MANY_WARPS)[:, None]
        if shared.in_flight[granules].any():
            raise Fault("a product reads shared memory where a copy is under way")
        writer, written_at = shared.writer[granules], shared.written_at[granules]
        shared.check(writer, who, "read by a product while a warp writes it")
        shared.note_read(granules, who)
        block = first_warps[:, None] // self.warps_of_block
        by_writer = self.fenced_at[block * self.warps_of_block + (writer & MANY_WARPS)] > written_at
        by_readers = np.ones(granules.shape, bool)
        for warp in range(4):
            fenced_at, stamp = self.fenced_at[first_warps + warp][:, None], self.fenced_by[first_warps + warp][:, None]
            by_readers &= (fenced_at > written_at) & ~concurrent(writer, stamp)
        if ((writer >= 0) & ~by_writer & ~by_readers).any():
            raise Fault("a product reads what no fence (fence.proxy.async) has made known")
