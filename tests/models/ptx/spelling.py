"""Spellings of PTX that the model accepts. Any other is an error, and never guessed at."""

import re

#: State spaces by the memory that they are. A launch has no clusters, so that a block's own window is all of `shared::cluster`.
SPACES = {
    "global": "global",
    "shared": "shared", "shared::cta": "shared", "shared::cluster": "shared",
    "param": "param", "param::entry": "param",
}  # fmt: skip

#: Where a block and a thread are.
SPECIAL = ("%tid.x", "%ctaid.x", "%ctaid.y", "%ctaid.z", "%nctaid.x")

BITS, INTEGER, FLOAT = "b(8|16|32|64)", "[su](8|16|32|64)", "f(16|32|64)"
SHARED = "shared(::cta|::cluster)?"
MEMORY = rf"({SHARED}|global)(\.L1::\w+)?(\.L2::\d+B)?(\.v[248])?\.({BITS}|{INTEGER}|{FLOAT})"
#: Subnormal numbers are flushed in float32 alone.
ARITHMETIC = r"(rn\.)?((ftz\.)?f32|f16|f64)"
EXTREME = rf"{INTEGER}|(ftz\.)?(NaN\.)?f32|(NaN\.)?f(16|64)"

#: Asynchronous products of 64 rows and 8 to 256 columns, with sums in float32.
WARPGROUP_SHAPES = r"m64n\d+k16\.f32\.(bf16\.bf16|f16\.f16)|m64n\d+k8\.f32\.tf32\.tf32"

#: What may follow an opcode, its modifiers and types, as regular expressions.
MODIFIERS = {
    "mov": rf"{BITS}|{INTEGER}|{FLOAT}|pred",
    "add": rf"{INTEGER}|{ARITHMETIC}", "sub": rf"{INTEGER}|{ARITHMETIC}",
    "mul": rf"(lo|wide)\.{INTEGER}|hi\.([su]32|u64)|{ARITHMETIC}", "mad": rf"(lo|wide)\.{INTEGER}",
    "fma": r"rn\.((ftz\.)?f32|f16|f64)|rm\.(ftz\.)?f32", "rem": "[su](16|32|64)",
    "div": rf"{INTEGER}|(full|approx)\.(ftz\.)?f32|rn\.((ftz\.)?f32|f64)",
    "neg": r"s(16|32|64)|(ftz\.)?f32|f16|f64", "abs": r"s(16|32|64)|(ftz\.)?f32|f16|f64",
    "min": EXTREME, "max": EXTREME,
    "and": "b(16|32|64)|pred", "or": "b(16|32|64)|pred", "xor": "b(16|32|64)|pred", "not": "b(16|32|64)|pred",
    "popc": "b(32|64)", "shl": "b(16|32|64)", "shr": "[bsu](16|32|64)", "bfe": "[su](32|64)", "bfi": "b32",
    "selp": rf"{BITS}|{INTEGER}|{FLOAT}",
    "setp": rf"(eq|ne)\.{BITS}|(eq|ne|lt|le|gt|ge|lo|ls|hi|hs)\.{INTEGER}|((eq|ne|lt|le|gt|ge)u?|num|nan)\.((ftz\.)?f32|f16|f64)",
    "cvt": rf"{INTEGER}\.{INTEGER}|rzi\.(ftz\.)?{INTEGER}\.f32|rzi\.{INTEGER}\.f64|rn\.f(32|64)\.{INTEGER}"
           r"|rzi\.((ftz\.)?f32\.f32|f64\.f64)|sat\.(ftz\.)?f32\.f32"
           r"|f32\.(bf16|f16)|f64\.f32|rn\.f32\.f64|rn\.(f16|bf16|f16x2|bf16x2)\.f32|rna\.tf32\.f32",
    "sqrt": r"(rn|approx)\.(ftz\.)?f32|rn\.f64", "rcp": r"approx\.ftz\.f64|rn\.((ftz\.)?f32|f64)", "ex2": r"approx\.(ftz\.)?f32",
    "shfl": r"sync\.(bfly|idx)\.b32", "redux": r"sync\.(add\.[su]32|(min|max)\.[su]32)",
    "mma": r"sync\.aligned\.(m16n8k(8|16)\.row\.col\.f32\.(bf16\.bf16|f16\.f16)\.f32|m16n8k8\.row\.col\.f32\.tf32\.tf32\.f32"
           r"|(m8n8k4|m16n8k16)\.row\.col\.f64\.f64\.f64\.f64)",
    "ldmatrix": rf"sync\.aligned\.m8n8\.x[124]\.(trans\.)?{SHARED}\.b16",
    "stmatrix": rf"sync\.aligned\.m8n8\.x[124]\.(trans\.)?{SHARED}\.b16",
    "wgmma": rf"(fence|commit_group|wait_group)\.sync\.aligned|mma_async\.sync\.aligned\.({WARPGROUP_SHAPES})",
    "fence": r"proxy\.async(\.shared::cta)?",
    "ld": rf"param(::entry)?(\.v[24])?\.({BITS}|{INTEGER}|{FLOAT})|{MEMORY}", "st": MEMORY, "cvta": r"to\.global\.u64",
    "cp": rf"async\.(ca|cg)\.{SHARED}\.global(\.L2::\d+B)?|async\.(commit|wait)_group",
    "bar": r"(warp\.)?sync", "bra": "(uni)?", "brx": "idx", "ret": "(uni)?", "trap": "",
}  # fmt: skip

REGISTER, NAME = r"%\w+(?:\.[xyz])?", r"[A-Za-z_$][\w$]*"
NUMBER = r"0x[\dA-Fa-f]+|0f[\dA-Fa-f]{8}|0d[\dA-Fa-f]{16}|-?\d+"
VALUE = rf"{REGISTER}|{NUMBER}|{NAME}"
LIST = rf"\{{\s*(?:{VALUE})(?:\s*,\s*(?:{VALUE}))*\s*\}}"
ADDRESS = rf"\[\s*(?:{REGISTER}|{NAME})(?:\s*\+\s*-?\d+)?\s*\]"
PAIR = rf"{REGISTER}\|{REGISTER}"
OPERAND = rf"{LIST}|{ADDRESS}|{PAIR}|{VALUE}"
INSTRUCTION = re.compile(
    rf"(?:@(?P<guard>!?%\w+)\s+)?(?P<name>[a-z]\w*)(?P<modifiers>(?:\.[\w:]+)*)\s*"
    rf"(?P<operands>(?:{OPERAND})(?:\s*,\s*(?:{OPERAND}))*)?"
)


class Unknown(NotImplementedError):
    """Error for PTX that the model does not know. To add it: a spelling here, and its effect in `instructions`."""


def unknown(what: str, why: str) -> Unknown:
    return Unknown(f"the model of a GPU does not know `{what}`: {why}")


def require_known(statement: str, name: str, modifiers: str, operands: tuple) -> None:
    """Require that every word of an instruction is known."""
    if name not in MODIFIERS:
        raise unknown(statement, f"no instruction {name}")
    if not re.fullmatch(MODIFIERS[name], modifiers):
        raise unknown(statement, f"of {name} it knows {MODIFIERS[name]}")
    if name != "shfl" and "|" in statement:
        raise unknown(statement, "only shuffles have a predicate as a second result")
    if name == "bar" and modifiers == "sync" and not (len(operands) == 1 and re.fullmatch("0|0x0+", operands[0])):
        raise unknown(statement, "a barrier of all threads of a block is number 0")
