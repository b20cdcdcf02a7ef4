"""The model's warps and warpgroups, against the tables and the canonical layouts of the PTX ISA."""

import ctypes

import pytest
import torch

from .launch import HALVES

# "Matrix fragments for mma.m16n8k16 with floating point type": element i of lane's fragment, as (row, column), with
# groupID = lane >> 2 and threadID_in_group = lane % 4. Elements 2 r and 2 r + 1 share register r, the first one low. Those of
# mma.m16n8k8 are the first half of A's and of B's.
A_FRAGMENT = [
    lambda g, t: (g, 2 * t), lambda g, t: (g, 2 * t + 1), lambda g, t: (g + 8, 2 * t), lambda g, t: (g + 8, 2 * t + 1),
    lambda g, t: (g, 2 * t + 8), lambda g, t: (g, 2 * t + 9), lambda g, t: (g + 8, 2 * t + 8), lambda g, t: (g + 8, 2 * t + 9),
]  # fmt: skip
B_FRAGMENT = [
    lambda g, t: (2 * t, g),
    lambda g, t: (2 * t + 1, g),
    lambda g, t: (2 * t + 8, g),
    lambda g, t: (2 * t + 9, g),
]
C_FRAGMENT = [
    lambda g, t: (g, 2 * t),
    lambda g, t: (g, 2 * t + 1),
    lambda g, t: (g + 8, 2 * t),
    lambda g, t: (g + 8, 2 * t + 1),
]


def spread(matrix, fragment):
    """The lanes' elements (32, elements) of a matrix."""
    return torch.stack([torch.stack([matrix[place(lane >> 2, lane % 4)] for place in fragment]) for lane in range(32)])


def address(tensor):
    return ctypes.c_void_p(tensor.data_ptr())


@pytest.mark.parametrize("depth", [16, 8])
@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_multiply_has_the_fragments_of_the_ptx_isa(built, dtype, depth):
    a, b, c = torch.randn(16, 16).to(dtype), torch.randn(16, 8).to(dtype), torch.randn(16, 8)
    d = spread(c, C_FRAGMENT).contiguous()
    lanes_a, lanes_b = spread(a, A_FRAGMENT).contiguous(), spread(b, B_FRAGMENT).contiguous()
    built[1].lgf_model_multiply(address(lanes_a), address(lanes_b), address(d), int(dtype == torch.bfloat16), depth)
    truth = a[:, :depth].float() @ b[:depth].float() + c
    torch.testing.assert_close(d, spread(truth, C_FRAGMENT))


@pytest.mark.parametrize("transposed", [False, True])
def test_load_matrices_has_the_fragments_of_the_ptx_isa(built, transposed):
    """ldmatrix .x4: register m of a lane holds, of matrix m, row lane / 4, elements 2 (lane % 4) and the one after."""
    matrices = torch.arange(4 * 8 * 8, dtype=torch.int16).view(4, 8, 8)
    registers = torch.empty(32, 4, 2, dtype=torch.int16)
    built[1].lgf_model_load(address(matrices), int(transposed), address(registers))
    for lane in range(32):
        for m in range(4):
            matrix = matrices[m].T if transposed else matrices[m]
            row, column = lane // 4, 2 * (lane % 4)
            assert registers[lane, m].tolist() == matrix[row, column : column + 2].tolist()


# "Asynchronous warpgroup level canonical layouts", swizzle of 128 bytes, T = 8 numbers of 16 bits, in CuTe's notation
# shape:stride with strides in numbers: K-major ((8,m),(T,2k)):((8T,SBO),(1,T)), MN-major ((T,8,m),(8,k)):((1,T,LBO),(8T,SBO)).


def canonical(down, across, k, leading, stride):
    """Offset of the number (across, k) of an operand in bytes, before the swizzle; leading and stride in bytes."""
    T = 8
    if down:
        return 2 * (across % T + across // T % 8 * T + k % 8 * 8 * T) + across // 64 * leading + k // 8 * stride
    return 2 * (across % 8 * 8 * T + k) + across // 8 * stride


def swizzled(address):
    """Swizzle<3,4,3>: bits 4 to 6 by bits 7 to 9."""
    return address ^ (address >> 7 & 7) << 4


# Register i of wgmma's D fragment, m64nNk16: row and column, by the PTX ISA.
def fragment(thread, i):
    warp, lane = thread // 32, thread % 32
    return 16 * warp + lane // 4 + 8 * (i // 2 % 2), 8 * (i // 4) + 2 * (lane % 4) + i % 2


@pytest.mark.parametrize("down_a", [False, True], ids=["A along rows", "A down columns"])
@pytest.mark.parametrize("down_b", [False, True], ids=["B along rows", "B down columns"])
@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_asynchronous_products_read_the_layouts_of_the_ptx_isa(built, dtype, down_a, down_b):
    a, b, c = torch.randn(64, 16).to(dtype), torch.randn(128, 16).to(dtype), torch.randn(64, 128)
    memory = torch.zeros(40 * 1024, dtype=torch.int16)
    descriptors = []
    for matrix, down, start in ((a, down_a, 2048), (b, down_b, 32 * 1024 + 64 * (not down_b))):
        leading, stride = (9 * 1024, 2 * 1024) if down else (16, 3 * 1024 // (1 + (len(matrix) > 64)) // 1024 * 1024)
        for across in range(len(matrix)):
            for k in range(16):
                at = swizzled(start + canonical(down, across, k, leading, stride))
                memory[at // 2] = matrix[across, k].view(torch.int16)
        descriptors.append(1 << 62 | stride // 16 << 32 | leading // 16 << 16 | start // 16)
    d = torch.stack([c[fragment(thread, i)] for thread in range(128) for i in range(64)])
    built[1].lgf_model_multiply_async(
        ctypes.c_void_p(memory.data_ptr()), ctypes.c_int64(2 * len(memory)), *map(ctypes.c_uint64, descriptors),
        ctypes.c_void_p(d.data_ptr()), int(dtype == torch.bfloat16), int(down_a), int(down_b),
    )  # fmt: skip
    truth = c + a.float() @ b.float().T
    torch.testing.assert_close(d, torch.stack([truth[fragment(t, i)] for t in range(128) for i in range(64)]))
