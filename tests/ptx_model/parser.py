"""PTX, as the compiler writes it, taken apart into basic blocks of instructions."""

import re
from typing import NamedTuple


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
        """Whether another basic block begins after it."""
        return self.name in ("bra", "brx", "bar", "ret") and self.modifiers[:1] != ("warp",)

    @property
    def kind(self) -> str:
        """The type operated on, which comes last."""
        return self.modifiers[-1] if self.modifiers else ""

    def __str__(self) -> str:
        return f"{'.'.join((self.name, *self.modifiers))} {self.operands} ({self.where})"


class Program(NamedTuple):
    """A kernel: its parameters' names and types, the bits of its registers, its basic blocks, which block a label names, and
    which blocks a table of labels does.

    `written_once`: registers that a single instruction writes.
    """

    parameters: dict[str, str]
    bits: dict[str, int]
    blocks: list[list[Instruction]]
    labels: dict[str, int]
    tables: dict[str, list[int]]
    written_once: set[str]


TABLE = re.compile(r"^\s*([$\w]+):\s+\.branchtargets(.*?);", re.M | re.S)


def parse(ptx: str) -> Program:
    header, body = re.search(r"\.entry \w+\(\n(.*?)\n\)\n[^{]*\{\n(.*?)\n\}", ptx, re.S).groups()
    parameters = {name: kind for kind, name in re.findall(r"\.param \.(\w+)\b.* (\w+)(?:,|$)", header, re.M)}
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
            elif statement and not statement.startswith("."):
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
    return Program(parameters, bits, blocks, labels, tables, written_once)


def parse_instruction(statement: str, where: str) -> Instruction:
    guard, opcode, rest = re.fullmatch(r"(?:@(!?%\w+)\s+)?([\w.:]+)\s*(.*)", statement, re.S).groups()
    name, *modifiers = opcode.replace("::", ":").split(".")
    operands = tuple(parse_operand(text) for text in re.findall(r"\{[^}]*\}|\[[^]]*\]|[^,\s{}\[\]|]+", rest))
    return Instruction(guard and (guard.lstrip("!"), guard[0] == "!"), name, tuple(modifiers), operands, where)


def parse_operand(text: str):
    if text[0] == "{":
        return [part.strip() for part in text[1:-1].split(",")]
    if text[0] == "[":
        base, _, offset = text[1:-1].replace(" ", "").partition("+")
        return Address(base, int(offset or "0", 0))
    return text


def flat(operands) -> list[str]:
    """The names and numbers in operands, those in braces too."""
    return [name for operand in operands for name in (operand if isinstance(operand, list) else [operand])]
