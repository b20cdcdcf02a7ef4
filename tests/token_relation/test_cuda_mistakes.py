"""Mistakes in the CUDA kernels of token relations that the comparison with the oracle must notice."""

import torch
from models.cuda.mistakes import broken, broken_on_purpose, mistakes, must_be_noticed

from .cuda_inputs import TILE, against_reference, inputs

READ = "  // this chunk is there, and the one before has been multiplied by all"
#: One of each kind: in what follows from pairs of tiles (distances), in sums over them (products), and on Hopper.
MISTAKES = {
    "no barrier around a chunk, distances": ("distances.h", f"sync_block();{READ}", ""),
    "no barrier around a chunk, products": ("products.h", f"sync_block();{READ}", ""),
    "a chunk is not waited for, distances": ("distances.h", "copy_wait<kColumnStages - 2>()", "copy_wait<kColumnStages - 1>()"),
    "a row is kept too long": ("distances.h", "at.pair.row != row || at.b != b;", "row < 0 || b < 0;"),
    "a row's chunk is replaced before it has been multiplied": (
        "distances.h", "|| chunks < kColumnStages) return 0;", ") return 0;"),
    "loaded into the chunk that is multiplied": (
        "products.h", "load(p, task, step + kStages - 1,", "load(p, task, step + kStages,"),
    "a block is not transposed": ("products.h", "load<Summed::down_columns>(moved(g, part, 0), operands)",
                                  "load<Summed::along_rows>(moved(g, 0, part), operands)"),
    "pieces are not exchanged": ("warps.h", "((piece ^ row) & 7)", "piece"),
    "a descriptor with another stride": ("warpgroups.h", "8 * slab::kRowBytes / 16", "4 * slab::kRowBytes / 16"),
    "the second warpgroup multiplies the first's rows": ("warpgroups.h", "a + warpgroup() *", "a + 0 *"),
    "a pair counts once, and not from either side": ("distances.h", "? sum : 2 * sum", "? sum : sum"),
}  # fmt: skip
MORE = {  # the first four are noticed in what nvcc compiles, too (test_cuda_ptx.py)
    "products are not waited for": ("warpgroups.h", "    warpgroup_wait(sums);\n", "    (void)sums;\n"),
    "products are not committed": ("warpgroups.h", "    warpgroup_commit();\n", ""),
    "sums are not fenced": ("warpgroups.h", "    warpgroup_fence();\n", ""),
    "copies are not made known": ("warpgroups.h", "{ fence_async_proxy(); }", "{}"),
    "no barrier before the sums of warps are read": (
        "distances.h", "sync_block();  // the sums of all warps are there, and the norms have been read", ""),
    "a chunk is not waited for, products": ("products.h", "copy_wait<kStages - 2>()", "copy_wait<kStages - 1>()"),
    "pieces are exchanged otherwise": ("warps.h", "((piece ^ row) & 7)", "((piece + row) & 7)"),
    "a descriptor with another leading offset": ("warpgroups.h", "slab::kHalfBytes / 16 : 1", "slab::kHalfBytes / 32 : 1"),
    "a descriptor steps along rows and not down": ("warpgroups.h", "(kDown ? k * slab::kRowBytes : k * 2)", "k * 2"),
}  # fmt: skip
OF_WARPS = {
    "rows not transposed": ("warps.h", "load_matrices_transposed(r, in_columns(a,", "load_matrices(r, in_columns(a,"),
    "a chunk is not waited for": ("distances.h", "copy_wait<kStages - 2>()", "copy_wait<kStages - 1>()"),
}  # fmt: skip
MORE_OF_WARPS = {
    "columns not transposed": ("warps.h", "load_matrices_transposed(r, in_columns(b,", "load_matrices(r, in_columns(b,"),
    "rows and halves of the sum exchanged": ("warps.h", "row + lane % 16, k / 8 + lane / 16",
                                             "row + lane / 16 * 8 + lane % 8, k / 8 + lane / 8 % 2"),
}  # fmt: skip


def notice_mistakes():
    against_reference(*inputs((1, 3, TILE + 5, 136), 72, torch.bfloat16))
    against_reference(*inputs((2, 3, TILE + 5, 16), 8, torch.bfloat16))


def test_kernels_without_a_mistake_pass(tensor_cores):
    notice_mistakes()


@broken_on_purpose
@mistakes("token_relation", MISTAKES, MORE)
def test_a_broken_kernel_fails_on_hopper(mistake, objects, tmp_path, monkeypatch):
    broken(mistake, objects, tmp_path, monkeypatch).lgf_model_hopper(1)
    must_be_noticed(notice_mistakes)


@broken_on_purpose
@mistakes("token_relation", OF_WARPS, MORE_OF_WARPS)
def test_a_broken_kernel_fails(mistake, objects, tmp_path, monkeypatch):
    broken(mistake, objects, tmp_path, monkeypatch)
    must_be_noticed(notice_mistakes)


def test_pieces_that_are_not_exchanged_meet_their_banks_twice(objects, tmp_path, monkeypatch):
    mistake = ("token_relation/warps.h", "((piece ^ row) & 7)", "piece")
    functions = broken(mistake, objects, tmp_path, monkeypatch)
    before = functions.lgf_model_bank_conflicts()
    against_reference(*inputs((1, 2, 30, 16), 8, torch.bfloat16))
    assert functions.lgf_model_bank_conflicts() > before
