"""Thread blocks side by side: their registers and their schedule."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from .arithmetic import unsigned
from .instructions import POISON, compiled
from .memory import Fault, Memory, stamp
from .parser import Instruction, Program
from .proxies import Proxies
from .warpgroups import THREADS, Products


def executable(program: Program) -> list[list[tuple[Instruction, Callable | None]]]:
    """Return each instruction with its effect; None for those that decide which threads run next."""
    return [[(op, None if op.ends_block else compiled(op, program)) for op in block] for block in program.blocks]


class Launch(NamedTuple):
    """The data that all blocks of a grid share: the bytes of the parameters, and global memory.

    `grid`: the blocks along x, y and z. `granule`: the narrowest access to shared memory, in bytes. `copies_need_fence`:
    whether asynchronous products read what asynchronous copies wrote only after a fence between the proxies.
    """

    program: Program
    code: list
    parameters: np.ndarray
    memory: Memory
    shared_bytes: int
    granule: int
    block_threads: int
    grid: tuple[int, int, int]
    copies_need_fence: bool = True


class Copies:
    """Asynchronous copies in progress. Each thread waits for its own groups of them."""

    def __init__(self, threads: int):
        self.committed = np.zeros(threads, np.int64)
        self.under_way = []  # (threads, their groups, granules, values)

    def begin(self, machine: "Machine", address: np.ndarray, values: np.ndarray, mask: np.ndarray) -> None:
        threads = np.flatnonzero(mask)
        granules = machine.shared.begin_copy(*machine.access("shared", address, mask), values.shape[1])
        self.under_way.append((threads, self.committed[threads], granules, values[mask]))

    def commit(self, mask: np.ndarray) -> None:
        self.committed += mask

    def wait(self, machine: "Machine", mask: np.ndarray, groups: int) -> None:
        """Complete all but so many of the last groups."""
        left = []
        for threads, group, granules, values in self.under_way:
            landed = mask[threads] & (group < self.committed[threads] - groups)
            machine.shared.end_copy(granules[landed], values[landed], machine.who[threads[landed]])
            if not landed.all():
                left.append((threads[~landed], group[~landed], granules[~landed], values[~landed]))
        self.under_way = left


class Machine:
    """Execution of blocks of a grid, the rows (x, y, z, number) of `blocks`. Of the threads that can run, the hindmost run."""

    def __init__(self, launch: Launch, blocks: np.ndarray):
        self.launch, self.parameters = launch, launch.parameters
        self.threads = len(blocks) * launch.block_threads
        self.thread = np.arange(self.threads)
        self.lane = self.thread % 32
        block, index = np.divmod(self.thread, launch.block_threads)
        shared = np.full(len(blocks) * launch.shared_bytes, 0xFF, np.uint8)
        self.shared = Memory("shared memory", shared, launch.granule, launch.shared_bytes)
        self.shared.copies_need_fence = launch.copies_need_fence
        self.shared_part = block * launch.shared_bytes
        self.special = {"%tid.x": index.astype(np.uint32)}
        self.special |= {f"%ctaid.{axis}": blocks[block, i].astype(np.uint32) for i, axis in enumerate("xyz")}
        self.special["%nctaid.x"] = np.full(self.threads, launch.grid[0], np.uint32)
        self.registers = {}
        self.copies = Copies(self.threads)
        self.products = Products(self.threads // THREADS)
        self.proxies = Proxies(self.shared, self.threads // 32, launch.block_threads // 32)
        self.at = np.zeros(self.threads, np.int64)
        self.waiting = np.zeros(self.threads, bool)
        self.exited = np.zeros(self.threads, bool)
        self.everyone = np.ones(self.threads, bool)
        self.who = stamp(blocks[block, 3], 0, index // 32)

    # ---- what instructions ask for ------------------------------------------------------------------------------

    def read(self, name: str) -> np.ndarray:
        if name not in self.registers:
            raise Fault(f"{name} is read before it is written")
        return self.registers[name]

    def read_or_poison(self, name: str) -> np.ndarray:
        if name in self.registers:
            return self.registers[name]
        dtype = unsigned(self.launch.program.bits[name])
        return np.full(self.threads, POISON, np.uint64).astype(dtype)

    def write(self, name: str, value: np.ndarray, mask: np.ndarray) -> None:
        if mask is not self.everyone:
            old = self.registers.get(name)
            value = np.where(mask, value, np.array(POISON, np.uint64).astype(value.dtype) if old is None else old)
        self.registers[name] = value

    def mask(self, guard: tuple[str, bool] | None) -> np.ndarray:
        """Return the threads that execute an instruction."""
        if guard is None:
            return self.active
        name, negated = guard
        return self.active & (self.registers[name] ^ negated)

    def access(self, space: str, address: np.ndarray, mask: np.ndarray) -> tuple[np.ndarray, ...]:
        """Return, for the threads of a mask, their addresses, the beginnings of their parts of memory, and their stamps."""
        return address[mask], self.shared_part[mask] if space == "shared" else 0, self.who[mask]

    def memory(self, space: str) -> Memory:
        return self.shared if space == "shared" else self.launch.memory

    def load(self, space: str, address: np.ndarray, dtype: type, count: int, mask: np.ndarray) -> np.ndarray:
        return self.memory(space).load(*self.access(space, address, mask), dtype, count)

    def store(self, space: str, address: np.ndarray, values: np.ndarray, mask: np.ndarray) -> None:
        self.memory(space).store(*self.access(space, address, mask), values[mask])

    def load_by_proxy(self, address: np.ndarray, threads: np.ndarray, size: int) -> np.ndarray:
        """Load numbers of so many bytes at addresses (n, count) for the warpgroups that begin with these threads."""
        places = address + self.shared_part[threads][:, None]
        if (address < 0).any() or (address + size > self.launch.shared_bytes).any():
            raise Fault("a descriptor leads outside shared memory")
        self.proxies.check(places // self.shared.granule, self.who[threads], threads // 32)
        return self.shared.content.view(f"u{size}")[places // size]

    def fence_proxies(self) -> None:
        warps = np.flatnonzero(self.active.reshape(-1, 32).any(1))
        self.proxies.fence(warps, self.who[32 * warps])

    def require_whole_warps(self) -> None:
        together = self.active.reshape(-1, 32)
        if self.active is not self.everyone and (together.any(1) != together.all(1)).any():
            raise Fault("a part of a warp arrives")

    # ---- who runs when ------------------------------------------------------------------------------------------

    def run(self) -> None:
        with np.errstate(all="ignore"):
            while not self.exited.all():
                ready = ~(self.exited | self.waiting)
                if ready.any():
                    self.step(ready)
                else:
                    self.pass_barriers()

    def step(self, ready: np.ndarray) -> None:
        """Return the basic block that the hindmost threads have reached."""
        at = self.at[ready].min()
        active = ready & (self.at == at)
        self.active = self.everyone if active.all() else active
        self.at[active] = at + 1
        for op, run in self.launch.code[at]:
            if run is not None:
                run(self)
            elif op.name == "bra":
                self.at[self.mask(op.guard)] = self.launch.program.labels[op.operands[0]]
            elif op.name == "brx":
                (index, table), mask = op.operands, self.mask(op.guard)
                self.at[mask] = np.array(self.launch.program.tables[table])[self.read(index)[mask]]
            elif op.name == "bar":
                self.waiting |= self.mask(op.guard)
            else:
                self.products.require_none(self.mask(op.guard))
                self.exited |= self.mask(op.guard)

    def pass_barriers(self) -> None:
        places = self.at.reshape(-1, self.launch.block_threads)
        waiting = self.waiting.reshape(-1, self.launch.block_threads)
        if (waiting.any(1) != waiting.all(1)).any() or (places != places[:, :1])[waiting].any():
            raise Fault("not all threads of a block come to the same barrier")
        self.who = self.who + self.waiting * stamp(0, 1, 0)
        self.waiting[:] = False
