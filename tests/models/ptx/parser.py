"""Parser of the compiler's PTX, into basic blocks of instructions."""

import re
from typing import NamedTuple

import numpy as np

from .arithmetic import TYPES
from .spelling import INSTRUCTION, OPERAND, SPACES, require_known, unknown


class Address(NamedTuple):
    """[base + offset]; the base is a register or a symbol."""

    base: str
    offset: int


class Instruction(NamedTuple):
    """`@guard name.modifiers operands`. An operand is a name or a number, a list of them in braces, or an address.

    `guard`: the predicate and whether it is negated, or None. `where`: the line of the source it was compiled from.
    """

    guard: tuple[str, bool] | None
    name: str
    modifiers: tuple[str, ...]
    operands: tuple
    where: str

    @property
    def ends_block(self) -> bool:
        """Return whether another basic block begins after it."""
        return self.name in ("bra", "brx", "bar", "ret") and self.modifiers[:1] != ("warp",)

    @property
    def space(self) -> str:
        """Return the memory of a load or a store, and the destination of an asynchronous copy."""
        return next(SPACES[word] for word in self.modifiers if word in SPACES)

    @property
    def kind(self) -> str:
        """Return the type operated on, which comes last."""
        return self.modifiers[-1] if self.modifiers else ""

    def __str__(self) -> str:
        long = [isinstance(operand, list) and len(operand) > 8 for operand in self.operands]
        operands = tuple([o[0], "...", o[-1]] if many else o for o, many in zip(self.operands, long, strict=True))
        return f"{'.'.join((self.name, *self.modifiers))} {operands} ({self.where})"


class Parameter(NamedTuple):
    """A parameter: a number, or a structure of bytes. `start`: where it begins among the bytes of all parameters."""

    kind: str
    start: int
    bytes: int


class Program(NamedTuple):
    """A kernel: its parameters, the bits of its registers, its basic blocks, which block a label names, and which blocks a
    table of labels does.

    `written_once`: registers that a single instruction writes. `shared`: the name of the variable in shared memory, if there is
    one; it begins at 0.
    """

    parameters: dict[str, Parameter]
    bits: dict[str, int]
    blocks: list[list[Instruction]]
    labels: dict[str, int]
    tables: dict[str, list[int]]
    written_once: set[str]
    shared: str | None


ENTRY = re.compile(r"\.entry (\w+)\(\n(.*?)\n\)\n[^{]*\{\n(.*?)\n\}", re.S)
PARAMETER = re.compile(r"\.param(?: \.align (\d+))? \.(\w+)\b[^,\n]*? (\w+)(?:\[(\d+)\])?(?:,|$)", re.M)
SHARED = re.compile(r"\.shared\b[^;]*?(\w+)\[")
#: Lines in a body that change nothing that it computes.
REMARKS = (".loc", ".pragma")
TABLE = re.compile(r"^\s*([$\w]+):\s+\.branchtargets(.*?);", re.M | re.S)


def parse(ptx: str, entry: str | None = None) -> Program:
    """Parse the kernel of this name, or the only one."""
    entries, shared = ENTRY.findall(ptx), SHARED.findall(ptx)
    wanted = [(header, body) for name, header, body in entries if entry in (None, name)]
    if len(wanted) != 1 or len(shared) > 1:
        raise unknown(
            f"{len(wanted)} kernels {entry or ''}, {len(shared)} variables in shared memory",
            "it runs one kernel with one variable at most",
        )
    ((header, body),) = wanted
    parameters = parse_parameters(header)
    bits, blocks, labels, written = {}, [[]], {}, {}
    where, inline = "", False
    for line in TABLE.sub("", body).splitlines():
        if ".loc" in line:
            where = line.partition("//")[2].strip()
        if "inline asm" in line:
            inline = "begin" in line
        for statement in line.partition("//")[0].split(";"):
            statement = statement.strip().lstrip("{} ")
            if label := re.fullmatch(r"([$\w]+):", statement):
                if blocks[-1]:
                    blocks.append([])
                labels[label[1]] = len(blocks) - 1
            elif declaration := re.match(r"\.reg \.(\w+)\s+(%?\w+)(?:<(\d+)>)?", statement):
                kind, name, number = declaration.groups()
                names = [name] if number is None else [f"{name}{i}" for i in range(int(number))]
                bits |= dict.fromkeys(names, 1 if kind == "pred" else int(kind[1:]))
            elif statement.startswith("."):
                if statement.split()[0] not in REMARKS:
                    raise unknown(statement, "no such directive within a kernel")
            elif statement:
                instruction = parse_instruction(statement, where)
                if inline and instruction.name == "mov" and instruction.operands[1] == "0x0":
                    continue  # what Triton lets a masked load without `other` hold is not for a kernel to rely on
                blocks[-1].append(instruction)
                for name in flat(instruction.operands[:1]):
                    written[name] = written.get(name, 0) + 1
                if instruction.ends_block:
                    blocks.append([])
    tables = {name: [labels[label] for label in re.findall(r"[$\w]+", names)] for name, names in TABLE.findall(body)}
    written_once = {name for name, times in written.items() if times == 1}
    return Program(parameters, bits, blocks, labels, tables, written_once, *shared or [None])


def parse_parameters(header: str) -> dict[str, Parameter]:
    """Return the parameters by name, each at the next multiple of its alignment."""
    parameters, end = {}, 0
    for alignment, kind, name, count in PARAMETER.findall(header):
        if kind not in TYPES:
            raise unknown(header, f"no parameters of type {kind}")
        size = np.dtype(TYPES[kind]).itemsize
        start = -(-end // int(alignment or size)) * int(alignment or size)
        parameters[name] = Parameter(kind, start, size * int(count or "1"))
        end = start + parameters[name].bytes
    if len(parameters) != header.count(".param"):
        raise unknown(header, "parameters are numbers, pointers and structures")
    return parameters


def parse_instruction(statement: str, where: str) -> Instruction:
    parts = INSTRUCTION.fullmatch(statement)
    if not parts:
        raise unknown(statement, "no instruction that it can read")
    guard, name, modifiers = parts["guard"], parts["name"], parts["modifiers"].lstrip(".")
    operands = tuple(parse_operand(text) for text in re.findall(OPERAND, parts["operands"] or ""))
    require_known(statement, name, modifiers, operands)
    guard = guard and (guard.lstrip("!"), guard[0] == "!")
    return Instruction(guard, name, tuple(filter(None, modifiers.split("."))), operands, where)


def parse_operand(text: str):
    if text[0] == "{":
        return [part.strip() for part in text[1:-1].split(",")]
    if "|" in text:
        return text.split("|")
    if text[0] == "[":
        base, _, offset = "".join(text[1:-1].split()).partition("+")
        return Address(base, int(offset or "0"))
    return text


def flat(operands) -> list[str]:
    """Return the names and numbers in operands, including those in braces."""
    return [name for operand in operands for name in (operand if isinstance(operand, list) else [operand])]
