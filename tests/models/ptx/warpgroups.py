"""Asynchronous products of warpgroups (wgmma): operands that descriptors locate in shared memory, sums in registers.

The sums are NaN while a product is under way. Operands are read when it begins and again when it is waited for, and must
be the same.
"""

from typing import NamedTuple

import numpy as np

from .arithmetic import from_bfloat16, towards_zero
from .memory import Fault
from .spelling import unknown

THREADS = 128
#: What the registers of sums hold while a product is under way: NaN.
SPOILT = np.uint32(0xFFFFFFFF)
#: Bits of the start, the leading offset and the stride in a descriptor, in units of 16 bytes, and all others but the swizzle's.
START, LEADING, STRIDE = 0, 16, 32
OTHERS = 2**62 - 1 - sum(0x3FFF << bit for bit in (START, LEADING, STRIDE))
#: Bytes of a row by the bits of a descriptor that tell the swizzle.
ROW_BYTES = {1: 128, 2: 64, 3: 32}
thread = np.arange(THREADS)


class Descriptor(NamedTuple):
    """An operand in shared memory: a descriptor for each warpgroup, and whether the summed dimension is not contiguous."""

    bits: np.ndarray
    down: bool

    def addresses(self, count: int, depth: int, size: int) -> np.ndarray:
        """Return the addresses (warpgroups, count, depth) of numbers of so many bytes."""
        start, leading, stride = (((self.bits >> bit & 0x3FFF) << 4)[:, None, None] for bit in (START, LEADING, STRIDE))
        swizzles = set((self.bits >> 62 & 3).tolist())
        if len(swizzles) > 1 or not swizzles <= ROW_BYTES.keys() or (self.bits & OTHERS).any():
            raise unknown(
                f"descriptor {self.bits[0]:#x}", "rows are swizzled by 128, 64 or 32 bytes, and the base is 0"
            )
        row = ROW_BYTES[swizzles.pop()]
        i, k = np.arange(count)[:, None], np.arange(depth)
        if self.down:
            across = row // size
            address = start + i // across * leading + k // 8 * stride + k % 8 * row + i % across * size
        else:
            address = start + i // 8 * stride + i % 8 * row + k * size
        return address ^ (address >> 7 & row // 16 - 1) << 4

    def of(self, chosen: np.ndarray) -> "Descriptor":
        return self._replace(bits=self.bits[chosen])

    def read(self, machine, warpgroups: np.ndarray, count: int, depth: int, size: int) -> np.ndarray:
        """Return the bits of the operand (warpgroups, count, depth)."""
        address = self.addresses(count, depth, size).reshape(len(warpgroups), -1)
        return machine.load_by_proxy(address, warpgroups * THREADS, size).reshape(-1, count, depth)


class Fragment(NamedTuple):
    """An operand in the registers of the threads, by their names."""

    registers: list[str]

    def of(self, chosen: np.ndarray) -> "Fragment":
        return self

    def read(self, machine, warpgroups: np.ndarray, count: int, depth: int, size: int) -> np.ndarray:
        row, place = thread // 32 * 16 + thread % 32 // 4, thread % 4
        threads = warpgroups[:, None] * THREADS + thread
        matrix = np.zeros((len(warpgroups), count, depth), np.dtype(f"u{size}"))
        for i, name in enumerate(self.registers):
            words = machine.read(name)[threads]
            for part in range(4 // size):
                bits = (words >> np.uint32(8 * size * part)).astype(matrix.dtype)
                matrix[:, row + i % 2 * 8, place * (4 // size) + part + i // 2 * (depth // 2)] = bits
        return matrix


class Product(NamedTuple):
    """A product: the warpgroups that multiply and the numbers of the groups that they commit it with, the registers of the
    sums, where these are kept and not started anew, the type and the operands, and what these held when it began."""

    warpgroups: np.ndarray
    committed_as: np.ndarray
    sums: tuple[str, ...]
    keeps: np.ndarray
    kind: str
    operands: tuple
    seen: tuple

    @property
    def threads(self) -> np.ndarray:
        return threads_of(self.warpgroups)

    def read(self, machine) -> tuple[np.ndarray, np.ndarray]:
        """Return the bits of the operands, 64 rows of the first and as many columns of the second as there are sums."""
        size = 4 if self.kind == "tf32" else 2
        a, b = self.operands
        return (
            a.read(machine, self.warpgroups, 64, 32 // size, size),
            b.read(machine, self.warpgroups, 2 * len(self.sums), 32 // size, size),
        )

    def of(self, chosen: np.ndarray) -> "Product":
        """Return the product of some of its warpgroups."""
        operands = tuple(operand.of(chosen) for operand in self.operands)
        seen = tuple(bits[chosen] for bits in self.seen)
        keeps = self.keeps.reshape(-1, THREADS)[chosen].reshape(-1)
        return self._replace(warpgroups=self.warpgroups[chosen], committed_as=self.committed_as[chosen], keeps=keeps,
                             operands=operands, seen=seen)  # fmt: skip


def threads_of(warpgroups: np.ndarray) -> np.ndarray:
    return (warpgroups[:, None] * THREADS + thread).reshape(-1)


def numbers(bits: np.ndarray, kind: str) -> np.ndarray:
    """Return the numbers that bits stand for. The tensor cores ignore the lowest of tf32."""
    if kind == "tf32":
        return (bits & np.uint32(0xFFFFE000)).view(np.float32).astype(np.float64)
    return (from_bfloat16(bits) if kind == "bf16" else bits.view(np.float16)).astype(np.float64)


class Products:
    """The products under way on a machine. Each warpgroup waits for its own groups of them."""

    def __init__(self, warpgroups: int):
        self.committed = np.zeros(warpgroups, np.int64)
        self.fenced = [None] * warpgroups  # the registers at the last fence
        self.under_way: list[Product] = []
        self.values = {}  # of sums under way, by their registers

    def fence(self, machine, warpgroups: np.ndarray) -> None:
        registers = dict(machine.registers)
        for warpgroup in warpgroups:
            self.fenced[warpgroup] = registers

    def begin(self, machine, product: Product) -> None:
        others = [p for p in self.under_way if {*p.sums} & {*product.sums} and {*p.warpgroups} & {*product.warpgroups}]
        if any(other.sums != product.sums for other in others):
            raise Fault("a product adds to a part of the sums of another that is under way")
        inputs = [name for a in product.operands[:1] if isinstance(a, Fragment) for name in a.registers]
        self.require_fence(machine, product, inputs if others else [*product.sums, *inputs])
        self.under_way.append(product._replace(seen=product.read(machine)))
        if not others:
            self.take_sums(machine, product)

    def require_fence(self, machine, product: Product, names: list[str]) -> None:
        """Require a fence after the last completed product, and that nothing has written the registers after it."""
        fences = {id(self.fenced[warpgroup]): self.fenced[warpgroup] for warpgroup in product.warpgroups}
        for registers in fences.values():
            if registers is None:
                raise Fault("no fence (wgmma.fence) between a product and earlier uses of its registers")
            for name in names:
                then, now = registers.get(name), machine.registers.get(name)
                if then is not now and (then is None or (then[product.threads] != now[product.threads]).any()):
                    raise Fault(f"{name} is written between the fence (wgmma.fence) and a product that uses it")

    def take_sums(self, machine, product: Product) -> None:
        values = self.values.setdefault(product.sums, np.zeros((len(product.sums), machine.threads), np.uint32))
        mask = mask_of(machine, product.threads)
        for value, name in zip(values, product.sums, strict=True):
            value[product.threads] = machine.read_or_poison(name)[product.threads]
            machine.write(name, np.full(machine.threads, SPOILT), mask)

    def commit(self, warpgroups: np.ndarray) -> None:
        self.committed[warpgroups] += 1

    def wait(self, machine, warpgroups: np.ndarray, groups: int) -> None:
        """Complete all but so many of the last groups."""
        landed, left = [], []
        for product in self.under_way:
            ours, committed = np.isin(product.warpgroups, warpgroups), self.committed[product.warpgroups]
            if (ours & (product.committed_as == committed)).any():
                raise Fault("a product is waited for and not committed (wgmma.commit_group)")
            lands = ours & (product.committed_as < committed - groups)
            landed.append(product.of(lands))
            left.append(product.of(~lands))
        self.under_way = [product for product in left if len(product.warpgroups)]
        landed = [product for product in landed if len(product.warpgroups)]
        for product in landed:
            self.multiply(machine, product)
        for product in {product.sums: product for product in landed}.values():
            self.give_back_sums(machine, product)

    def multiply(self, machine, product: Product) -> None:
        operands = product.read(machine)
        if any((now != then).any() for now, then in zip(operands, product.seen, strict=True)):
            raise Fault("an operand is written while a product reads it")
        a, b = (numbers(bits, product.kind) for bits in operands)
        element = np.arange(len(product.sums))[:, None]
        row = thread // 32 * 16 + thread % 32 // 4 + element % 4 // 2 * 8
        column = element // 4 * 8 + thread % 4 * 2 + element % 2
        added = (a @ b.swapaxes(1, 2))[:, row, column].swapaxes(0, 1).reshape(len(product.sums), -1)
        values = self.values[product.sums]
        kept = np.where(product.keeps, values[:, product.threads].view(np.float32), 0).astype(np.float64)
        values[:, product.threads] = towards_zero(kept + added).view(np.uint32)

    def give_back_sums(self, machine, product: Product) -> None:
        """Write the sums to their registers, and require a fence before the next product."""
        if any(p.sums == product.sums and {*p.warpgroups} & {*product.warpgroups} for p in self.under_way):
            return
        mask = mask_of(machine, product.threads)
        for value, name in zip(self.values[product.sums], product.sums, strict=True):
            if (machine.registers[name][product.threads] != SPOILT).any():
                raise Fault(f"{name} is written while a product adds to it")
            machine.write(name, value, mask)
        for warpgroup in product.warpgroups:
            self.fenced[warpgroup] = None

    def require_none(self, mask: np.ndarray) -> None:
        if any(mask[product.threads].any() for product in self.under_way):
            raise Fault("threads end with products that they have not waited for")


def mask_of(machine, threads: np.ndarray) -> np.ndarray:
    mask = np.zeros(machine.threads, bool)
    mask[threads] = True
    return mask


def instruction(machine, op, *operands) -> None:
    """Execute a wgmma instruction of the active warpgroups."""
    warpgroups, products = active_warpgroups(machine), machine.products
    if op.modifiers[0] == "fence":
        products.fence(machine, warpgroups)
    elif op.modifiers[0] == "commit_group":
        products.commit(warpgroups)
    elif op.modifiers[0] == "wait_group":
        products.wait(machine, warpgroups, int(op.operands[0]))
    else:
        products.begin(machine, described_product(machine, op, warpgroups, *operands))


def active_warpgroups(machine) -> np.ndarray:
    if machine.launch.block_threads % THREADS:
        raise Fault(f"warpgroups in a block of {machine.launch.block_threads} threads")
    active = machine.active.reshape(-1, THREADS)
    if (active.any(1) != active.all(1)).any():
        raise Fault("a part of a warpgroup arrives")
    return np.flatnonzero(active.any(1))


def described_product(machine, op, warpgroups, a, b, keeps, *flags) -> Product:
    """Return the product of an instruction: a and b, signs, and for shared memory and 16 bits whether it is transposed."""
    kind, threads = op.modifiers[-1], threads_of(warpgroups)
    signs, down = flags[:2], [bool(flag[0]) for flag in flags[2:]]
    shared = [not isinstance(a, list), True]
    if any((sign != 1).any() for sign in signs) or len(down) != (0 if kind == "tf32" else sum(shared)):
        raise unknown(str(op), "operands keep their sign, and only those of 16 bits in shared memory are transposed")
    sums = tuple(op.operands[0])
    if 2 * len(sums) != int(op.modifiers[-4].partition("n")[2].partition("k")[0]):
        raise unknown(str(op), "it has half as many sums in a thread as columns")
    down = [False] * (2 - len(down)) + down
    operands = tuple(
        Descriptor(one_of_each(operand[threads]), transposed) if in_shared else Fragment(op.operands[1])
        for operand, in_shared, transposed in zip((a, b), shared, down, strict=True)
        if not (in_shared and isinstance(operand, list))
    )
    return Product(warpgroups, machine.products.committed[warpgroups], sums, keeps[threads], kind, operands, ())


def one_of_each(descriptors: np.ndarray) -> np.ndarray:
    """Return the descriptor of each warpgroup, the same in all its threads."""
    rows = descriptors.astype(np.int64).reshape(-1, THREADS)
    if (rows != rows[:, :1]).any():
        raise Fault("the threads of a warpgroup multiply different operands")
    return rows[:, 0]
