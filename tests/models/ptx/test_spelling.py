"""What the model reads in PTX: every spelling of a memory, and an error where it does not know a word."""

import numpy as np
import pytest

from models.ptx.launcher import Arena, prepared
from models.ptx.machine import Launch, Machine
from models.ptx.memory import Fault
from models.ptx.spelling import Unknown

torch = pytest.importorskip("torch")

KERNEL = """
.extern .shared .align 16 .b8 storage[];
.visible .entry reversed_lanes(
\t.param .u64 .ptr .global .align 1 reversed_lanes_param_0
)
.reqntid 64
{
\t.reg .pred \t%p<3>;
\t.reg .b32 \t%r<9>;
\t.reg .b64 \t%rd<5>;
\tld.{param}.b64 \t%rd1, [reversed_lanes_param_0];
\tmov.u32 \t%r1, %tid.x;
\tshl.b32 \t%r2, %r1, 2;
\tmov.b32 \t%r3, storage;
\tadd.s32 \t%r4, %r3, %r2;
\tst.{written}.b32 \t[%r4], %r1;
\t{barrier}
\tmad.lo.s32 \t%r5, %r1, -4, 252;
\tadd.s32 \t%r5, %r5, %r3;
\tld.{read}.b32 \t%r6, [ %r5 + 0 ];
\t{more}
\tcvt.u64.u32 \t%rd2, %r2;
\tadd.s64 \t%rd3, %rd1, %rd2;
\tst.global.b32 \t[%rd3], %r6;
\tret;
}
"""


def run(param="param", written="shared", read="shared", barrier="bar.sync 0;", more=""):
    """What 64 threads write that read each other's numbers from the end."""
    ptx = KERNEL
    for name, text in {"param": param, "written": written, "read": read, "barrier": barrier, "more": more}.items():
        ptx = ptx.replace("{" + name + "}", text)
    program, code, granules = prepared(ptx)
    result = torch.full((64,), -1, dtype=torch.int32)
    arena = Arena([result], granules["global"])
    parameters = {name: np.array([arena.address(result)], np.uint64) for name in program.parameters}
    launch = Launch(program, code, parameters, arena.memory, 256, granules["shared"], 64)
    Machine(launch, np.zeros((1, 4), int)).run()
    arena.give_back()
    return result.tolist()


SHARED = ("shared", "shared::cta", "shared::cluster")


@pytest.mark.parametrize("param", ["param", "param::entry"])
@pytest.mark.parametrize("written", SHARED)
@pytest.mark.parametrize("read", SHARED)
def test_every_spelling_of_a_memory(param, written, read):
    assert run(param, written, read) == list(range(63, -1, -1))


@pytest.mark.parametrize("written", SHARED)
def test_a_race_is_one_in_every_spelling(written):
    with pytest.raises(Fault, match="race: shared memory"):
        run(written=written, barrier="")


def test_what_another_memory_holds_is_not_read():
    with pytest.raises(Fault, match="global memory"):
        run(read="global")


@pytest.mark.parametrize(
    "more",
    [
        "madc.hi.s32 %r7, %r6, %r6, %r6;",  # instructions
        "trap;",
        "ld.b32 %r7, [%r5];",  # memories
        "ld.local.b32 %r7, [%r5];",
        "ld.const.b32 %r7, [%r5];",
        "ld.shared::warp.b32 %r7, [%r5];",
        "ld.param::func.b32 %r7, [%r5];",
        "ld.param.b32 %r7, [%r5];",
        "ld.param.b32 %r7, [reversed_lanes_param_0+4];",
        "ld.volatile.shared.b32 %r7, [%r5];",  # modifiers
        "ld.shared.L2::cache_hint.b32 %r7, [%r5], %rd1;",
        "add.sat.s32 %r7, %r6, %r6;",
        "mul.hi.s32 %r7, %r6, %r6;",
        "cvt.rni.s32.f32 %r7, %r6;",
        "cvt.rz.bf16x2.f32 %r7, %r6, %r6;",
        "add.f16x2 %r7, %r6, %r6;",  # types
        "add.bf16x2 %r7, %r6, %r6;",
        "rcp.approx.ftz.f32 %r7, %r6;",
        "setp.lt.and.s32 %p1, %r6, %r6, %p2;",  # forms
        "setp.lt.s32 %p1|%p2, %r6, %r6;",
        "shfl.sync.bfly.b32 %r7|%p1, %r6, 1, 31, -1;",
        "shfl.sync.bfly.b32 %r7, %r6, 1, 15, -1;",
        "shfl.sync.bfly.b32 %r7, %r6, 1, 31, 65535;",
        "shfl.sync.up.b32 %r7, %r6, 1, 0, -1;",
        "and.pred %p1, !%p2, %p2;",
        "ld.shared.b32 %r7, [%r5+%r6];",
        "bar.sync 1;",
        "bar.sync 0, 32;",
        "bar.arrive 0, 64;",
        "bra.convergent elsewhere;",
        "cp.async.bulk.shared::cta.global [%r5], [%rd1], 16;",
        "cp.async.wait_all;",
        "mma.sync.aligned.m16n8k16.col.row.f32.f16.f16.f32 {%r1}, {%r1}, {%r1}, {%r1};",
        "mov.u32 %r7, %laneid;",  # names
        "mov.b32 %r7, other_storage;",
        ".shared .align 4 .b8 own[16];",
        ".local .align 4 .b8 own[16];",
    ],
)
def test_what_it_does_not_know_is_an_error_that_says_so(more):
    with pytest.raises(Unknown, match="does not know"):
        run(more=more)


def test_errors_name_what_is_not_known():
    with pytest.raises(Unknown, match=r"`madc.hi.s32 %r7, %r6, %r6, %r6`: no instruction madc"):
        run(more="madc.hi.s32 %r7, %r6, %r6, %r6;")
    with pytest.raises(Unknown, match="`2 kernels"):
        prepared(KERNEL + KERNEL.replace(".extern .shared .align 16 .b8 storage[];", ""))
