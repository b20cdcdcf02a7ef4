"""Every operator on the model, and bugs that it must notice. Prints a JSON line for each case, of a process of its own.

PYTHONPATH=tests python -m models.ptx.cases                    what the tests run
PYTHONPATH=tests python -m models.ptx.cases configurations     every row of the table of configurations, in some minutes
"""

import json
import os
import sys
from collections.abc import Callable, Iterator
from typing import NamedTuple
from unittest import mock

os.environ.pop("TRITON_INTERPRET", None)  # an interpreted kernel is not compiled

import torch
import triton
import triton.language as tl
from support.numerics import double, features, relative_error, value_and_gradient

import lgf_kernels as lgf
from lgf_kernels.core import registry, triton_norms
from lgf_kernels.core import triton_launch as launch
from lgf_kernels.gram_flow import triton_configs as flow_configs
from lgf_kernels.token_relation import triton_configs as relation_configs
from lgf_kernels.token_relation import triton_distances as token_relation

from . import launcher
from .memory import Fault


class Case(NamedTuple):
    """A call: the student's shape and type, the channels of the teachers, and options. `row`: of the table's configurations."""

    loss: str
    dtype: str
    shape: tuple[int, ...]
    teachers: tuple[int, ...]
    options: dict
    gradient: bool = True
    table: str = ""
    row: tuple | None = None

    def __str__(self) -> str:
        options = [f"{name}={value}" for name, value in self.options.items()]
        words = [self.loss, self.dtype, *self.shape, "teachers", *self.teachers, *options, self.row or ""]
        return " ".join(map(str, words)).strip()

    def errors(self) -> list[float]:
        """Relative ones of the value and, if asked for, of the gradient, against the oracle in float64."""
        loss, options = getattr(lgf, self.loss), dict(self.options)
        student = features(*self.shape, dtype=getattr(torch, self.dtype))
        teachers = [features(*self.shape[:-1], channels, dtype=student.dtype) for channels in self.teachers]
        if self.loss == "lgf_kl_loss_from_logits":
            teachers = [lgf.local_gram_flow(teacher, backend="reference").half() for teacher in teachers]
        if self.loss == "token_relation_loss":
            (teachers,) = teachers
            options["pair_weight"] = lgf.moalign_pair_weight(self.shape[1])
        others = [teachers] if self.teachers else []
        if not self.gradient:
            truth = loss(student.double(), *map(double, others), backend="reference", **options)
            return [relative_error(loss(student, *others, backend="triton", **options), truth)]
        upstream = torch.randn(loss(student, *others, backend="reference", **options).shape, dtype=torch.float64)
        options["upstream"] = upstream
        ours = value_and_gradient(loss, student, *others, backend="triton", **options)
        truth = value_and_gradient(loss, student.double(), *map(double, others), backend="reference", **options)
        return [relative_error(our, true) for our, true in zip(ours, truth, strict=True)]


DTYPES = ("float32", "bfloat16", "float16", "float64")
BOTH, DOT, PLAIN = {"direction": "both"}, {"similarity": "dot"}, {"boundary": "zero", "divergence": "l2"}
CASES = [
    *(Case("lgf_kl_loss", dtype, (1, 3, 9, 11, 20), (24,), BOTH) for dtype in DTYPES),
    *(Case("token_relation_loss", dtype, (2, 3, 37, 20), (64,), {}) for dtype in DTYPES),
    Case("lgf_kl_loss", "bfloat16", (1, 2, 3, 17, 40), (24, 7), DOT | PLAIN | {"window": 3, "reduction": "none"}),
    Case("lgf_kl_loss", "float32", (2, 2, 5, 6, 3), (2,), {"window": 5, "boundary": "zero", "direction": "backward"}),
    Case("lgf_kl_loss", "float16", (1, 2, 9, 3, 16), (16, 8, 12), {"window": 15}),
    Case("lgf_kl_loss_from_logits", "bfloat16", (1, 3, 9, 9, 24), (16,), {}),
    Case("lgf_kl_loss", "float32", (1, 2, 4, 5, 8), (8,), {"divergence": "l2"}, gradient=False),
    Case("local_gram_flow", "bfloat16", (1, 3, 9, 9, 72), (), {}),
    Case("token_relation_loss", "bfloat16", (1, 2, 150, 72), (24,), {"margin": 0.1}),
]


#: The tables of configurations, and the modules that hold them.
TABLES = dict.fromkeys(("FORWARD", "FORWARD_ONE_GRAM", "BACKWARD", "BACKWARD_TWO_PASSES"), flow_configs)
TABLES |= dict.fromkeys(("DISTANCES", "PRODUCTS"), relation_configs)


def rows_of_tables() -> Iterator[Case]:
    """Of each row one call, with more channels than its block."""
    dtypes = {2: "bfloat16", 4: "float32", 8: "float64"}
    for table in TABLES:
        for key, rows in getattr(TABLES[table], table).items():
            dtype = dtypes[key[1] if isinstance(key, tuple) else key]
            for row in rows:
                if table in ("DISTANCES", "PRODUCTS"):
                    tokens = relation_configs.RELATION_TILES[getattr(torch, dtype).itemsize][0] + 5
                    call = Case("token_relation_loss", dtype, (1, 2, tokens, row.BLOCK_C + 12), (row.BLOCK_C + 8,), {})
                else:
                    loss, teachers = ("local_gram_flow", ()) if "ONE" in table else ("lgf_kl_loss", (24,))
                    call = Case(loss, dtype, (1, 2, 9, 9, row.BLOCK_C + 8), teachers, {})
                yield call._replace(table=table.split("_")[0].lower(), row=row)


# ---- bugs that must be noticed ----------------------------------------------------------------------------------


@triton.jit
def doubled(x, y, n, MASKED: tl.constexpr, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    if MASKED:
        tl.store(y + i, 2 * tl.load(x + i, mask=i < n))
    else:
        tl.store(y + i, 2 * tl.load(x + i))


def past_the_end() -> None:
    launcher.run(doubled, (1,), torch.ones(100), torch.empty(128), 100, MASKED=False, BLOCK=128, num_warps=4)


def masked_without_other() -> float:
    """0 if such a load gave zeros, as Triton's do today."""
    y = torch.empty(128)
    launcher.run(doubled, (1,), torch.ones(100), y, 100, MASKED=True, BLOCK=128, num_warps=4)
    return y[100:].sum().item()


def between_the_elements() -> None:
    """Of a tensor with a stride that the kernel does not know of."""
    x = torch.ones(256)[::2]
    launcher.run(doubled, (1,), x, torch.empty(128), 128, MASKED=False, BLOCK=128, num_warps=4)


def not_aligned() -> None:
    """A kernel compiled for 16 bytes at a time of tensors that begin with such, launched with another."""
    constants = dict(MASKED=False, BLOCK=128, num_warps=1, enable_fp_fusion=True)
    compiled = doubled.warmup(torch.ones(128), torch.empty(128), 128, grid=(1,), **constants)
    with mock.patch.object(doubled, "warmup", lambda *arguments, **constants: compiled):
        launcher.run(doubled, (1,), torch.ones(129)[1:], torch.empty(128), 128, **constants)


def edited(old: str, new: str) -> None:
    """A kernel whose compiled code is changed."""
    prepared = launcher.prepared
    student = features(1, 1, 128, 40, dtype=torch.bfloat16)
    with mock.patch.object(launcher, "prepared", lambda ptx: prepared(ptx.replace(old, new))):
        value_and_gradient(lgf.token_relation_loss, student, student, pair_weight=torch.ones(1, 1), backend="triton")


def gradient_of_equals(fused) -> float:
    """Of student and teacher with the same features, where products and sums of a kernel are fused that must not be."""

    def run(kernel, *arguments, enable_fp_fusion=True, **constants):
        launcher.run(kernel, *arguments, enable_fp_fusion=enable_fp_fusion or kernel is fused, **constants)

    with mock.patch.object(launch, "run", run):
        student = features(1, 2, 40, 24)
        _, gradient = value_and_gradient(
            lgf.token_relation_loss, student, student.clone(), pair_weight=torch.ones(2, 2), backend="triton"
        )
    return gradient.abs().max().item()


BUGS: dict[str, Callable] = {
    "past the end": past_the_end,
    "between the elements": between_the_elements,
    "not aligned": not_aligned,
    "masked without other": masked_without_other,
    "no barriers": lambda: edited("bar.sync", "// bar.sync"),
    "waits too little": lambda: edited("cp.async.wait_group \t0", "cp.async.wait_group \t1"),
    "nothing fused": lambda: gradient_of_equals(None),
    "differences fused": lambda: gradient_of_equals(token_relation.lgf_relation_distances),
    "norms fused": lambda: gradient_of_equals(triton_norms.lgf_reciprocal_norms),
}


def offer_triton() -> None:
    """Every operator's Triton backend runs CPU tensors from now on."""
    for operator in list(registry.OPERATORS.values()):
        rows = [r._replace(unsupported_reason=registry.always) if r.name == "triton" else r for r in operator.backends]
        registry.register(operator.name, operator.package, *rows)


def noticed(run: Callable) -> dict:
    try:
        return {"result": run()}
    except Fault as fault:
        return {"fault": str(fault)}


def run_case(case: Case) -> dict:
    torch.manual_seed(0)
    if case.row is None:
        return noticed(case.errors)
    with mock.patch.object(TABLES[case.table.upper()], case.table, lambda *arguments: [case.row]):
        return noticed(case.errors)


def main() -> None:
    torch.use_deterministic_algorithms(True)  # fills what `torch.empty` returns with NaN
    offer_triton()
    launcher.launched_on_model(launch)
    every_row = sys.argv[1:] == ["configurations"]
    for case in rows_of_tables() if every_row else CASES:
        print(json.dumps({"case": str(case)} | run_case(case)), flush=True)
    for name, run in () if every_row else BUGS.items():
        print(json.dumps({"case": name} | noticed(run)), flush=True)


if __name__ == "__main__":
    main()
