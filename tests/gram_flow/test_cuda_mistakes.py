"""Mistakes in the CUDA kernels of Local Gram Flow that the comparison with the oracle must notice."""

import torch
from models.cuda.launch import against_reference
from models.cuda.mistakes import broken, broken_on_purpose, mistakes, must_be_noticed
from support.numerics import features

import lgf_kernels as lgf

#: One of each kind, forward and backward: a barrier, a wait, a layout, an index or a mask, arithmetic.
MISTAKES = {
    "no barrier before a chunk is overwritten, forward": (
        "forward_band.h", "sync_block();  // the chunk has been read by all, and the squares are there", ""),
    "no barrier before windows are overwritten": (
        "backward_band.h", "sync_block();  // the windows have been read: what is next may lie over them", ""),
    "a chunk is not waited for, forward": ("forward_band.h", "copy_wait<1>()", "copy_wait<2>()"),
    "a chunk is not waited for, backward": ("backward_band.h", "copy_wait<kStages - 2>()", "copy_wait<kStages - 1>()"),
    "windows are not waited for": (
        "backward_band.h", "copy_wait<0>();\n    sync_block();  // the windows",
        "copy_wait<1>();\n    sync_block();  // the windows"),
    "pieces and halves of a row exchanged": (
        "forward_band.h", "place(lane / 16 * 8 + lane % 8, k + lane / 8 % 2)", "place(lane / 8 % 2 * 8 + lane % 8, k + lane / 16)"),
    "norms of the wrong halves": ("forward_band.h", "others[summed(j)][h], h)", "others[summed(j)][h], 1 - h)"),
    "the tile's rows are copied from where the halo's are": ("band.h", "kStep / kCols * kHaloCols : kStep", "kStep : kStep"),
    "the last frame's norms are not kept": ("forward_band.h", "p.backward ? 0 : p.grid.frames - 1", "p.backward ? 0 : -1"),
    "not transposed": ("backward_band.h", "load_matrices_transposed(b", "load_matrices(b"),
    "key side at the offset and not its opposite": (
        "backward_band.h", "(band::kWindow - 1 - dy) * kWindowRow + band::kWindow - 1 - dx", "dy * kWindowRow + dx"),
    "the other token's scale": (
        "backward_band.h", "kOfKeys ? other : band::opposite(own)", "kOfKeys ? band::opposite(own) : other"),
    "what is wanted of no window is added": ("backward_band.h", "wanted ? g_scaled : 0.0f", "wanted ? g_scaled : g_scaled"),
    "norms of skipped tokens are not kept": ("forward_band.h", "take_norms(p, tile, of_keys, norms);", ";"),
    "a tile's gradient is skipped by its own weights alone": ("backward.h", "side.as_key.g ? p.window / 2 : 0", "0"),
    "one place of the halo too far right": ("band.h", "tile.x0 - kHaloLeft + column", "tile.x0 - kRadius + column"),
}  # fmt: skip
MORE = {
    "a skipped tile's last frame has no norms": ("forward_band.h", "of_keys <= keeps_keys(p, tile)", "of_keys <= 0"),
    "norms of skipped tokens are not waited for": (
        "forward_band.h", "sync_block();  // the norms of skipped tokens are there", ""),
    "weights of a row too few": ("counted.h", "y0 + rows < grid.rows ? y0 + rows", "y0 + rows < grid.rows ? y0 + rows - 1"),
    "weights of the columns before the tile": ("counted.h", "x = x0 + lane;", "x = x0 + lane - 1;"),
    "a skipped tile keeps what was there": ("forward.h", "tile.b, tile.t), y, x)] = T(0);", "tile.b, tile.t), y, x)] = T(NAN);"),
    "a skipped gradient keeps what was there": (
        "backward.h", "if (in_frame(p.grid, y, x)) store_zeros", "if (false) store_zeros"),
    "no barrier before the places of the next source": (
        "forward_band.h", "sync_block();  // all have copied the first chunk of a source of one chunk", ""),
    "no barrier before a chunk is overwritten, backward": (
        "backward_band.h", "sync_block();  // this step's chunk is there, and that of the step before has been read by all", ""),
    "norms of the tile's rows exchanged": (
        "forward_band.h", "diagonal(squares.own[row], row)", "diagonal(squares.own[1 - row], 1 - row)"),
    "norms are not started anew for a source": ("forward_band.h", "        squares = {};\n", ""),
    "no barrier before the norms are used": ("forward_band.h", "sync_block();  // the norms are there", ""),
    "a row of the band has no norms": ("forward_band.h", "j == 1 ? row < 7", "j == 1 ? row < 3"),
    "rows of the gradient one number off": ("forward.h", "z + query * pitch + dy * K)", "z + query * pitch + dy * K + 1)"),
    "a mask one position off": ("divergence.h", "(columns * kFirstOfEachRow & rows) >> lane_", "columns * kFirstOfEachRow & rows"),
    "positions outside are not counted": ("divergence.h", "(outside ? outside * of_zeros.t : T(0))", "T(0)"),
    "the first frame's norms are not kept": (
        "forward_band.h", "p.backward ? 0 : p.grid.frames - 1", "p.backward ? -1 : p.grid.frames - 1"),
    "rows of the pair exchanged in an operand": ("backward_band.h", "h = i % 4 / 2, row = i % 2", "h = i % 2, row = i % 4 / 2"),
    "no barrier before a gradient is stored": ("backward_band.h", "sync_block();  // the gradient is there", ""),
    "no barrier before what is next": ("backward_band.h", "sync_block();  // what is next may lie over it", ""),
    "own features lie over a chunk in use": ("backward_band.h", "sync_block();  // the last chunk has been read by all", ""),
}  # fmt: skip


def notice_mistakes():
    student, *teachers = (features(1, 2, 3, 5, C, dtype=torch.bfloat16) for C in (264, 16, 24))
    for direction, boundary in (("forward", "exclude"), ("backward", "zero"), ("both", "exclude")):
        options = {"direction": direction, "boundary": boundary, "token_weight": torch.rand(1, 1, 3, 5)}
        against_reference(lgf.lgf_kl_loss, student, teachers, **options)
    notice_mistakes_where_tiles_are_skipped()


def notice_mistakes_where_tiles_are_skipped():
    """Of 3 x 2 tiles, one row of one column counts; its windows reach into the tiles below and to the right."""
    student, teacher = (features(1, 2, 20, 20, 8, dtype=torch.bfloat16) for _ in range(2))
    weight = torch.zeros(1, 1, 20, 20)
    weight[:, :, 7, 15] = 1
    for direction in ("forward", "backward"):
        options = {"direction": direction, "token_weight": weight, "reduction": "none"}
        against_reference(lgf.lgf_kl_loss, student, [teacher], **options)


def test_kernels_without_a_mistake_pass(model):
    notice_mistakes()


@broken_on_purpose
@mistakes("gram_flow", MISTAKES, MORE)
def test_a_broken_kernel_fails(mistake, objects, tmp_path, monkeypatch):
    broken(mistake, objects, tmp_path, monkeypatch)
    must_be_noticed(notice_mistakes)


def test_an_unspread_place_meets_its_banks_twice(objects, tmp_path, monkeypatch):
    mistake = ("gram_flow/band.h", "(piece ^ (token >> 1)) & (kPieces - 1)", "piece")
    functions = broken(mistake, objects, tmp_path, monkeypatch)
    student, teacher = (features(1, 2, 5, 6, 8, dtype=torch.bfloat16) for _ in range(2))
    against_reference(lgf.lgf_kl_loss, student, [teacher])  # right nevertheless
    assert functions.lgf_model_bank_conflicts() > 0
