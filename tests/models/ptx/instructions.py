"""Effects of instructions: functions of the machine, the instruction and its operands, to the registers they write."""

from collections.abc import Callable

import numpy as np

from . import arithmetic as math
from . import matrices, warpgroups
from .arithmetic import TYPES
from .memory import Fault
from .parser import Address, Instruction, Program, flat
from .spelling import SPECIAL, unknown

#: What a register that nothing wrote reads as: NaN in every type.
POISON = 0xFFFFFFFFFFFFFFFF


#: Instructions that write no registers, or like the products of warpgroups write them later.
WITHOUT_TARGET = ("st", "cp", "bar", "stmatrix", "wgmma", "fence", "trap")


def compiled(op: Instruction, program: Program) -> Callable:
    """Return the instruction as a function of the machine."""
    function = FUNCTIONS[op.name]
    targets = [] if op.name in WITHOUT_TARGET else flat(op.operands[:1])
    sources = op.operands[len(targets) > 0 :]
    if op.name == "wgmma":
        sources = sources[1:]  # without the sums, or how many groups to wait for
    if op.name in ("ld", "st"):
        require_space(op, program)
    reads = [reader(source, kind, program) for source, kind in zip(sources, kinds(op, len(sources)), strict=True)]
    if op.name == "mov" and isinstance(op.operands[1], str) and op.operands[1] in program.bits:
        reads = [defined_or_not(op.operands[1], op.kind)]
    # Without `other` a masked load leaves anything where it is masked.
    undefined = op.name == "ld" and program.written_once.issuperset(targets)

    def run(machine) -> None:
        try:
            if "sync" in op.modifiers:
                machine.require_whole_warps()
            results = function(machine, op, *(read(machine) for read in reads))
        except Fault as fault:
            raise Fault(f"{fault}: {op}") from None
        mask = machine.mask(None if undefined else op.guard)
        for name, result in zip(targets, results or [], strict=True):
            if name != "_":
                machine.write(name, extended(result, program.bits[name]), mask)

    return run


def require_space(op: Instruction, program: Program) -> None:
    """Require that a symbol in an address belongs to the memory that is accessed."""
    address = next(operand for operand in op.operands if isinstance(operand, Address))
    names = program.parameters if op.space == "param" else {program.shared} if op.space == "shared" else {}
    if address.base not in names and address.base not in program.bits:
        raise unknown(str(op), f"{address.base} is no variable of {op.space} memory")


def kinds(op: Instruction, count: int) -> list[str]:
    """Return the types of an instruction's operands where they differ from the instruction's."""
    if op.name in ("shl", "shr", "bfe"):
        return [op.kind, "u32", "u32"][:count]
    if op.name == "bfi":
        return [op.kind, op.kind, "u32", "u32"]
    if op.name == "wgmma":  # the operands, whether sums are kept, signs, and whether operands are transposed
        of_a = "b32" if count and isinstance(op.operands[1], list) else "b64"
        return [of_a, "b64", "pred", *["s32"] * (count - 3)][:count]
    if op.name == "selp":
        return [op.kind, op.kind, "pred"]
    if op.name == "mad" and op.modifiers[0] == "wide":
        return [op.kind, op.kind, math.wide(op.kind)]
    if op.name == "mov" and isinstance(op.operands[1], list):
        return [f"b{int(op.kind[1:]) // len(op.operands[1])}"]
    if (op.name == "mma" and op.kind != "f64") or op.name in ("cp", "bar", "stmatrix"):
        return ["b32"] * count
    return [op.kind] * count


def reader(operand, kind: str, program: Program) -> Callable:
    """Return a function from the machine to an operand as an array of this type; an address gives the place, braces a list."""
    if isinstance(operand, list):
        reads = [reader(part, kind, program) for part in operand]
        return lambda machine: [read(machine) for read in reads]
    if isinstance(operand, Address):
        if operand.base in program.parameters:
            place = program.parameters[operand.base].start + operand.offset
            return lambda machine: place
        base = reader(operand.base, "u64", program)
        return lambda machine: base(machine).astype(np.int64) + operand.offset
    dtype = np.dtype(TYPES[kind])
    bits = math.unsigned(1 if kind == "pred" else 8 * dtype.itemsize)
    if operand in program.bits:
        return lambda machine: machine.read(operand).astype(bits, copy=False).view(dtype)
    if operand in SPECIAL:
        return lambda machine: machine.special[operand].view(dtype)
    if operand[:2] in ("0f", "0d"):
        number = int(operand[2:], 16)
    elif operand[0] in "-0123456789":
        number = int(operand, 0) & (POISON >> 64 - 8 * dtype.itemsize)
    elif operand == program.shared:
        number = 0
    elif operand in program.parameters:
        number = program.parameters[operand].start
    else:
        raise unknown(operand, "no register or variable of that name")
    return lambda machine: np.full(machine.threads, number, bits).view(dtype)


def defined_or_not(register: str, kind: str) -> Callable:
    """Return a function that reads a register, or any value where nothing has written it: compilers move such values too."""
    dtype = TYPES[kind]
    bits = math.unsigned(1 if kind == "pred" else 8 * np.dtype(dtype).itemsize)
    return lambda machine: machine.read_or_poison(register).astype(bits, copy=False).view(dtype)


def extended(value: np.ndarray, bits: int) -> np.ndarray:
    """Return the bits of a value in a register that may be longer: a signed value keeps its sign."""
    if value.dtype.kind == "f":
        value = value.view(math.unsigned(8 * value.dtype.itemsize))
    return value.astype(math.unsigned(bits), copy=False)


# ---- of one thread, from the operands of that thread ------------------------------------------------------------


def product(op: Instruction, a, b):
    if op.modifiers[0] == "hi":
        return math.upper_half(a, b)
    if op.modifiers[0] != "wide":
        return a * b
    wide = TYPES[math.wide(op.kind)]
    return a.astype(wide) * b.astype(wide)


def converted(op: Instruction, a, *lower):
    """Convert (cvt.to.from). The first of two numbers is the upper half of a pair."""
    to, source = op.modifiers[-2:]
    if source == "bf16":
        a = math.from_bfloat16(a)
    if to == source:
        return np.trunc(a) if "rzi" in op.modifiers else np.where(np.isnan(a), np.float32(0), np.clip(a, 0, 1))
    if not to.endswith("x2"):
        return math.convert(a, to)
    upper, lower = (math.convert(x, to[:-2]).view(np.uint16).astype(np.uint32) for x in (a, *lower))
    return (upper << np.uint32(16)) | lower


def divided(op: Instruction, a, b):
    if a.dtype.kind != "f":
        return math.quotient(a, b)
    return a / b if "rn" in op.modifiers else math.approximate(a.astype(np.float64) / b, 2.0**-22)


def root(op: Instruction, a):
    return np.sqrt(a) if "rn" in op.modifiers else math.approximate(np.sqrt(a.astype(np.float64)), 2.0**-23)


def reciprocal(op: Instruction, a):
    """Divide 1; approximate in float64, from the upper half to the upper half."""
    if "rn" in op.modifiers:
        return 1 / a
    upper = np.uint64(0xFFFFFFFF00000000)
    return ((1 / (a.view(np.uint64) & upper).view(np.float64)).view(np.uint64) & upper).view(np.float64)


def moved(op: Instruction, source):
    """Move, also from a register to several in braces and from several to one: the first holds the lowest bits."""
    if isinstance(source, list):
        return np.stack(source, 1).view(TYPES[op.kind])[:, 0]
    if not isinstance(op.operands[0], list):
        return source
    parts = len(op.operands[0])
    return list(np.ascontiguousarray(source).view(TYPES[f"b{int(op.kind[1:]) // parts}"]).reshape(-1, parts).T)


ELEMENTWISE = {
    "mov": moved,
    "cvta": lambda op, a: a,  # an address of global memory is the same in all memories
    "add": lambda op, a, b: a + b,
    "sub": lambda op, a, b: a - b,
    "mul": product,
    "mad": lambda op, a, b, c: product(op, a, b) + c,
    "fma": lambda op, a, b, c: (math.fused_downwards if "rm" in op.modifiers else math.fused)(a, b, c),
    "div": divided,
    "rem": lambda op, a, b: math.remainder(a, b),
    "neg": lambda op, a: -a,
    "abs": lambda op, a: np.abs(a),
    "min": lambda op, a, b: (np.minimum if "NaN" in op.modifiers else np.fmin)(a, b),
    "max": lambda op, a, b: (np.maximum if "NaN" in op.modifiers else np.fmax)(a, b),
    "and": lambda op, a, b: a & b,
    "or": lambda op, a, b: a | b,
    "xor": lambda op, a, b: a ^ b,
    "not": lambda op, a: ~a,
    "popc": lambda op, a: np.bitwise_count(a).astype(np.uint32),
    "shl": lambda op, a, by: math.shifted(a, by, left=True),
    "shr": lambda op, a, by: math.shifted(a, by, left=False),
    "bfe": lambda op, a, start, length: math.bit_field(a, start, length),
    "bfi": lambda op, field, a, start, length: math.inserted(field, a, start, length),
    "selp": lambda op, a, b, condition: np.where(condition, a, b),
    "setp": lambda op, a, b: math.compare(op.modifiers[0], a, b),
    "cvt": converted,
    "sqrt": root,
    "rcp": reciprocal,
    "ex2": lambda op, a: math.approximate(np.exp2(a.astype(np.float64)), 2.0**-22),
}


def elementwise(function: Callable) -> Callable:
    def of_all_threads(machine, op, *values):
        flush = math.flushed if "ftz" in op.modifiers and op.kind == "f32" else lambda value: value
        result = function(op, *map(flush, values))
        if isinstance(result, list):
            return result
        return [math.canonical(flush(result)) if result.dtype.kind == "f" else result]

    return of_all_threads


# ---- between the threads of a warp ------------------------------------------------------------------------------


def shuffle(machine, op, value, by, clamp, members):
    if (clamp[machine.active] != 31).any() or (members[machine.active] != 0xFFFFFFFF).any():
        raise unknown(str(op), "shuffles are of whole warps")
    lane = {"bfly": machine.lane ^ (by & 31), "idx": by & 31}[op.modifiers[1]]
    results = [value[machine.thread - machine.lane + lane]]
    # The second result is whether the lane exists.
    return [*results, np.ones(machine.threads, bool)] if isinstance(op.operands[0], list) else results


def warp_reduction(machine, op, value, members):
    function = {"add": np.add, "min": np.minimum, "max": np.maximum}[op.modifiers[1]]
    return [function.reduce(value.reshape(-1, 32), 1, dtype=value.dtype).repeat(32)]


def matrix_product(machine, op, a, b, c):
    shape, kind = op.modifiers[2], op.modifiers[-2]
    return matrices.SHAPES[shape, kind](*map(np.stack, (a, b, c)))


def matrix_load(machine, op, address):
    """Load matrices of 8 rows of 16 bytes; the i-th eight lanes have the addresses of the rows of the i-th."""
    count = len(op.operands[0])
    elements = np.zeros((machine.threads, 8), np.uint16)
    rows = machine.mask(op.guard) & (machine.lane < 8 * count)
    elements[rows] = machine.load("shared", address, np.uint16, 8, rows)
    elements = elements.reshape(-1, 4, 8, 8)  # warp, matrix, row, column
    if "trans" in op.modifiers:
        elements = elements.swapaxes(2, 3)
    pairs = np.ascontiguousarray(elements).view(np.uint32)  # the lanes take them row by row
    return list(pairs.reshape(-1, 4, 32).swapaxes(0, 1).reshape(4, -1)[:count])


def matrix_store(machine, op, address, values):
    """Store matrices, the reverse of `matrix_load`."""
    count, warps = len(values), machine.threads // 32
    pairs = np.stack(values).reshape(count, warps, 32).swapaxes(0, 1)  # warp, matrix, lane
    elements = np.ascontiguousarray(pairs).view(np.uint16).reshape(warps, count, 8, 8)
    if "trans" in op.modifiers:
        elements = elements.swapaxes(2, 3)
    rows = np.zeros((warps, 32, 8), np.uint16)
    rows[:, : 8 * count] = elements.reshape(warps, 8 * count, 8)
    who = machine.mask(op.guard) & (machine.lane < 8 * count)
    machine.store("shared", address, rows.reshape(-1, 8), who)


# ---- memory -----------------------------------------------------------------------------------------------------


def load(machine, op, address):
    dtype, mask, count = TYPES[op.kind], machine.mask(op.guard), len(flat(op.operands[:1]))
    if op.space == "param":
        return list(parameter(machine, address, np.dtype((dtype, count)), mask).T)
    values = np.full((machine.threads, count), POISON, np.uint64).astype(f"u{np.dtype(dtype).itemsize}").view(dtype)
    if mask.any():
        values[mask] = machine.load(op.space, address, dtype, count, mask)
    return list(values.T)


def parameter(machine, address, dtype: np.dtype, mask: np.ndarray) -> np.ndarray:
    """Return numbers from the bytes of the parameters, for each thread."""
    data = machine.parameters
    address = np.where(mask, address, 0)
    if (address < 0).any() or (address + dtype.itemsize > len(data)).any() or (address % dtype.itemsize).any():
        raise Fault(f"an access to {dtype.itemsize} bytes of parameters at {address[mask][0]}")
    values = np.lib.stride_tricks.sliding_window_view(data, dtype.itemsize)[address]
    return np.ascontiguousarray(values).view(dtype.base)


def store(machine, op, address, values):
    mask = machine.mask(op.guard)
    if mask.any():
        values = np.stack(values if isinstance(values, list) else [values], 1)
        machine.store(op.space, address, values, mask)


def copy(machine, op, *operands):
    """Copy from global to shared memory (cp.async), complete when it is waited for; zeros where the source's size is 0."""
    mask = machine.mask(op.guard)
    if op.modifiers[1] == "commit_group":
        machine.copies.commit(mask)
    elif op.modifiers[1] == "wait_group":
        machine.copies.wait(machine, mask, int(op.operands[0]))
    elif mask.any():
        to, source, size, *source_size = operands
        size = int(size[0])
        values = np.zeros((machine.threads, size), np.uint8)
        reading = mask & (source_size[0] > 0) if source_size else mask
        values[reading] = machine.load("global", source, np.uint8, size, reading)
        machine.copies.begin(machine, to, values, mask)


def trap(machine, op):
    if machine.mask(op.guard).any():
        raise Fault("the kernel gives up")


FUNCTIONS = {name: elementwise(function) for name, function in ELEMENTWISE.items()} | {
    "shfl": shuffle, "redux": warp_reduction, "mma": matrix_product, "ldmatrix": matrix_load, "stmatrix": matrix_store,
    "ld": load, "st": store, "cp": copy, "bar": lambda machine, op, members: None, "trap": trap,
    "wgmma": warpgroups.instruction, "fence": lambda machine, op: machine.fence_proxies(),
}  # fmt: skip
