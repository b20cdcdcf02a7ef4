"""Memory with checks: accesses out of bounds or not aligned, races between warps, copies read before they are complete."""

import numpy as np

#: A stamp is a thread block, how many barriers it has passed, and a warp, from the highest bits to the lowest.
WARP_BITS, BARRIER_BITS = 6, 20
BLOCK = WARP_BITS + BARRIER_BITS
MANY_WARPS, MANY_BLOCKS = 2**WARP_BITS - 1, 2**62


class Fault(Exception):
    """Error for what fails on a GPU, or may fail."""


def stamp(block: np.ndarray, barriers: np.ndarray, warp: np.ndarray) -> np.ndarray:
    return block << BLOCK | barriers << WARP_BITS | warp


def concurrent(other: np.ndarray, own: np.ndarray) -> np.ndarray:
    """Return whether two accesses are unordered: of two blocks, or of two warps of a block without a barrier between them."""
    suspects = (other >= 0) & (other != own)
    if suspects.any():
        difference = other ^ own
        suspects &= (difference >> WARP_BITS == 0) | (difference >> BLOCK != 0)
    return suspects


class Memory:
    """Bytes, in granules of the narrowest access, each with the stamps of its last write and its last read.

    `limit` is one thread block's part, which is all it may address. `valid`: the granules that may be accessed at all.
    `time` counts fences, and `written_at` has the time of the last write; neither is kept before the first fence. Without
    `copies_need_fence` asynchronous copies are as if a fence followed them.
    """

    def __init__(self, name: str, content: np.ndarray, granule: int, limit: int, origin: int = 0,
                 valid: np.ndarray | None = None):  # fmt: skip
        self.name, self.content, self.granule, self.limit, self.origin = name, content, granule, limit, origin
        granules = len(content) // granule
        self.valid = np.ones(granules, bool) if valid is None else valid
        self.writer = np.full(granules, -1)
        self.reader = np.full(granules, -1)
        self.in_flight = np.zeros(granules, bool)
        self.time, self.copies_need_fence = 0, True
        self.written_at = np.zeros(granules, np.int32)

    def places(self, address: np.ndarray, base: np.ndarray, size: int) -> np.ndarray:
        """Check accesses of so many bytes, and return their granules (n, size / granule)."""
        address = address.astype(np.int64) - self.origin
        self.refuse((address < 0) | (address + size > self.limit), address, size, "out of bounds")
        self.refuse(address % size != 0, address, size, "not aligned")
        granules = ((base + address) // self.granule)[:, None] + np.arange(size // self.granule)
        self.refuse(~self.valid[granules].all(1), address, size, "no part of any argument")
        self.refuse(self.in_flight[granules].any(1), address, size, "where a copy is under way")
        return granules

    def refuse(self, bad: np.ndarray, address: np.ndarray, size: int, why: str) -> None:
        if bad.any():
            raise Fault(f"an access to {size} bytes of {self.name} at {address[bad][0]}, {why}")

    def load(self, address, base, who: np.ndarray, dtype: type, count: int) -> np.ndarray:
        """Load (n, count) elements."""
        granules = self.places(address, base, np.dtype(dtype).itemsize * count)
        who = who[:, None]
        self.check(self.writer[granules], who, "read while another warp writes it")
        self.note_read(granules, who)
        return self.words(granules).view(dtype)

    def store(self, address, base, who: np.ndarray, values: np.ndarray) -> None:
        """Store (n, count) elements. Two warps may write the same value."""
        values = np.ascontiguousarray(values)
        granules = self.places(address, base, values.dtype.itemsize * values.shape[1])
        self.note_write(granules, who, values)
        self.put(granules, values)
        if (self.words(granules) != values.view(self.unit)).any():
            raise Fault(f"two threads write {self.name} at once")

    def note_read(self, granules: np.ndarray, who: np.ndarray) -> None:
        who = np.broadcast_to(who, granules.shape)
        for _ in range(2):  # once for readers before, once for the others in this instruction
            last = self.reader[granules]
            others = concurrent(last, who)
            self.reader[granules] = np.where(others, last, who)
            if others.any():
                self.reader[granules[others]] = who[others] | MANY_WARPS
                self.reader[granules[others & (last >> BLOCK != who >> BLOCK)]] = MANY_BLOCKS

    def note_write(self, granules: np.ndarray, who: np.ndarray, values: np.ndarray | None = None) -> None:
        who = who[:, None]
        self.check(self.reader[granules], who, "written while another warp reads it")
        changed = True if values is None else self.words(granules) != values.view(self.unit)
        self.check(np.where(changed, self.writer[granules], -1), who, "written by two warps")
        self.mark_written(granules, who)

    def begin_copy(self, address, base, who: np.ndarray, size: int) -> np.ndarray:
        """Mark the destination of an asynchronous copy, which nothing may access until the copy is complete."""
        granules = self.places(address, base, size)
        self.note_write(granules, who)
        self.in_flight[granules] = True
        return granules

    def end_copy(self, granules: np.ndarray, values: np.ndarray, who: np.ndarray) -> None:
        self.in_flight[granules] = False
        self.mark_written(granules, who[:, None])
        if not self.copies_need_fence:
            self.written_at[granules] = -1
        self.put(granules, values)

    def mark_written(self, granules: np.ndarray, who: np.ndarray) -> None:
        self.writer[granules] = who
        if self.time:
            self.written_at[granules] = self.time

    @property
    def unit(self) -> type:
        return np.dtype(f"u{self.granule}")

    def words(self, granules: np.ndarray) -> np.ndarray:
        return self.content.view(self.unit)[granules]

    def put(self, granules: np.ndarray, values: np.ndarray) -> None:
        self.content.view(self.unit)[granules] = values.view(self.unit)

    def check(self, other: np.ndarray, who: np.ndarray, what: str) -> None:
        if concurrent(other, who).any():
            raise Fault(f"race: {self.name} is {what}, with no barrier in between")
