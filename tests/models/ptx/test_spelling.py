"""What the model reads in PTX: every spelling of a memory, and an error where it does not know a word."""

import numpy as np
import pytest

from models.ptx.arena import ORIGIN, Arena
from models.ptx.grid import prepared, run_grid
from models.ptx.memory import Fault
from models.ptx.parser import parse, parse_parameters
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


def filled(ptx, param="param", written="shared", read="shared", barrier="bar.sync 0;", more=""):
    for name, text in {"param": param, "written": written, "read": read, "barrier": barrier, "more": more}.items():
        ptx = ptx.replace("{" + name + "}", text)
    return ptx


def run(*spellings, **parts):
    """Return what 64 threads write that read each other's numbers from the end."""
    kernel = prepared(filled(KERNEL, *spellings, **parts))
    result = torch.full((64,), -1, dtype=torch.int32)
    arena = Arena([result], kernel.granules["global"])
    run_grid(kernel, (1,), 64, 256, np.array([arena.address(result)], np.uint64).view(np.uint8), arena.memory)
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
        "ld.b32 %r7, [%r5];",  # memories
        "ld.local.b32 %r7, [%r5];",
        "ld.const.b32 %r7, [%r5];",
        "ld.shared::warp.b32 %r7, [%r5];",
        "ld.param::func.b32 %r7, [%r5];",
        "ld.volatile.shared.b32 %r7, [%r5];",  # modifiers
        "ld.shared.L2::cache_hint.b32 %r7, [%r5], %rd1;",
        "add.sat.s32 %r7, %r6, %r6;",
        "mul.hi.s64 %rd3, %rd1, %rd1;",
        "cvt.rni.s32.f32 %r7, %r6;",
        "cvt.rz.bf16x2.f32 %r7, %r6, %r6;",
        "add.f16x2 %r7, %r6, %r6;",  # types
        "add.bf16x2 %r7, %r6, %r6;",
        "rcp.approx.ftz.f32 %r7, %r6;",
        "setp.lt.and.s32 %p1, %r6, %r6, %p2;",  # forms
        "setp.lt.s32 %p1|%p2, %r6, %r6;",
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
        "wgmma.mma_async.sp.sync.aligned.m64n8k32.f32.f16.f16 {%r1}, %rd1, %rd1, 1, 1, 1, 0, 0;",
        "wgmma.mma_async.sync.aligned.m64n8k16.f16.f16.f16 {%r1}, %rd1, %rd1, 1, 1, 1, 0, 0;",
        "fence.proxy.async.global;",
        "fence.acq_rel.gpu;",
        "stmatrix.sync.aligned.m16n8.x1.trans.shared.b8 [%r5], {%r6};",
        "cvta.shared.u64 %rd3, %rd1;",
        "mov.u32 %r7, %laneid;",  # names
        "mov.b32 %r7, other_storage;",
        "ld.global.b32 %r7, [reversed_lanes_param_0];",
        "ld.param.b32 %r7, [storage];",
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
    with pytest.raises(Unknown, match="`0 kernels elsewhere"):
        prepared(KERNEL, "elsewhere")


def test_a_kernel_among_others():
    one = filled(KERNEL)
    another = one.replace(".extern .shared .align 16 .b8 storage[];", "").replace("reversed_lanes", "another")
    assert parse(another + one, "reversed_lanes") == parse(one)


def test_parameters_are_bytes_at_their_alignment():
    header = (
        "\t.param .u32 first,\n\t.param .align 8 .b8 second[20],\n\t.param .u8 third,\n\t.param .u64 .ptr .align 1 last"
    )
    places = {name: (start, size) for name, (_, start, size) in parse_parameters(header).items()}
    assert places == {"first": (0, 4), "second": (8, 20), "third": (28, 1), "last": (32, 8)}


@pytest.mark.parametrize("address", ["reversed_lanes_param_0+4", "%rd4+4"])
def test_a_part_of_a_parameter(address):
    """The upper half of an address, through a name or a register."""
    more = f"mov.b64 %rd4, reversed_lanes_param_0;\n\tld.param.b32 %r6, [{address}];"
    assert run(more=more) == [ORIGIN >> 32] * 64


@pytest.mark.parametrize("address", ["reversed_lanes_param_0+8", "%rd4+8", "%rd4+-4", "%rd4+2"])
def test_what_is_no_parameter_is_not_read(address):
    with pytest.raises(Fault, match="4 bytes of parameters"):
        run(more=f"mov.b64 %rd4, reversed_lanes_param_0;\n\tld.param.b32 %r6, [{address}];")


@pytest.mark.parametrize("more", ["trap;", "@%p1 trap;"])
def test_a_trap_is_a_fault_where_it_is_reached(more):
    with pytest.raises(Fault, match="gives up"):
        run(more=f"setp.eq.s32 %p1, %r1, 7;\n\t{more}")
    assert run(more=f"setp.eq.s32 %p1, %r1, 64;\n\t@%p1 {more[-5:]}") == list(range(63, -1, -1))


def test_undefined_registers_are_moved_and_not_used():
    assert run(more="mov.b32 %r8, %r7;") == list(range(63, -1, -1))
    with pytest.raises(Fault, match="before it is written"):
        run(more="add.s32 %r8, %r7, %r7;")


@pytest.mark.parametrize(
    "more, expected",
    [
        ("mul.hi.s32 %r6, %r5, -2;", [-1] * 63 + [0]),
        ("mul.hi.u32 %r6, %r1, -1;", [max(i - 1, 0) for i in range(64)]),
        ("mov.b64 %rd4, -1;\n\tmul.hi.u64 %rd4, %rd4, %rd4;\n\tcvt.u32.u64 %r6, %rd4;", [-2] * 64),
        ("sub.s32 %r6, %r1, 32;\n\trem.s32 %r6, %r6, 5;", [int(np.fmod(i - 32, 5)) for i in range(64)]),
        ("bfi.b32 %r6, %r1, -1, 4, 3;", [i % 8 * 16 - 113 for i in range(64)]),
        ("shfl.sync.bfly.b32 %r6|%p1, %r1, 3, 31, -1;", [i ^ 3 for i in range(64)]),
        ("mov.u32 %r6, %nctaid.x;", [1] * 64),
    ],
)
def test_integers(more, expected):
    assert run(more=more) == expected
