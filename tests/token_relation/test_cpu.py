"""The CPU kernels of token relations by themselves: instruction sets, blocks, channels, types, threads, zeros, bad calls."""

import itertools
from contextlib import contextmanager

import pytest
import torch
from support import numerics
from support.numerics import features, relative_error, value_and_gradient
from support.pairs import every_pair

import lgf_kernels as lgf
from lgf_kernels.core import native
from lgf_kernels.token_relation import channel_grams

cpu, reason = native.load("cpu")
pytestmark = pytest.mark.skipif(cpu is None, reason=f"no native module: {reason}")
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
loss = lgf.token_relation_loss


@pytest.fixture(autouse=True)
def tiles(monkeypatch):
    """Compute every call by tiles: never by products of channels, which are the portable backend's."""
    monkeypatch.setattr(channel_grams, "is_faster", lambda *_: False)


@contextmanager
def threads(count):
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def against_reference(student, teacher, c, **options):
    gradient = {torch.float32: 1e-5, torch.float64: 1e-11, torch.bfloat16: 4e-3, torch.float16: 7.5e-4}[student.dtype]
    # The gradient of a single token is 0 where norms are divided first, but for rounding.
    options |= dict(backend="native", value=min(gradient, 2e-6), gradient=gradient, absolute=1e-15)
    if student[0].numel() == student.shape[-1]:
        options["absolute"] = 1e-6
    numerics.against_reference(loss, student, teacher, pair_weight=c, **options)


@every_pair(
    options={
        "distance": ("l1", "l2"),
        "negatives": ("keep", "clamp", "clamp-teacher"),
        "similarity": ("cosine", "dot"),
    },
    dtype=DTYPES,
    teacher=(torch.float32, torch.bfloat16),
    shape=((1, 1, 1, 1, 1), (3, 4, 1, 3, 2), (2, 3, 100, 17, 64), (1, 2, 225, 300, 31), (1, 1, 459, 24, 520)),
)
def test_every_instruction_set(isa, options, dtype, teacher, shape):
    """Blocks with a rest of one token, one row of a tile or less than a vector; channels in several parts, and parts of one."""
    B, F, N, C, D = shape
    upstream = F * N * torch.rand(B, dtype=torch.float64)  # large enough for float16
    student, weight = features(B, F, N, C, dtype=dtype), torch.rand(F, F)
    if (
        options["similarity"] == "dot"
    ):  # divided by the floor of norms, the gradient of such a token would hide all others
        student[:, :, 1 : N - 1 : 50] = 0  # whose similarities are 0, and count as kept
    options |= dict(reduction="none", upstream=upstream)
    against_reference(student, features(B, F, N, D, dtype=teacher), weight, **options)


@pytest.mark.parametrize("channels", [*range(1, 36), 63, 64, 65, 255, 256, 257, 511, 513, 1000])
def test_every_number_of_channels(isa, channels):
    student, teacher = features(1, 2, 13, channels), features(1, 2, 13, 1001 - channels)
    # A normalised token of one channel is a sign, without a gradient.
    similarity = "dot" if channels == 1 else "cosine"
    against_reference(student, teacher, torch.rand(2, 2), negatives="clamp", similarity=similarity)


@pytest.mark.parametrize("tokens", [*range(1, 36), 191, 192, 193, 223, 224, 225, 447, 449])
def test_every_number_of_tokens(isa, tokens):
    against_reference(features(2, 1, tokens, 5), features(2, 1, tokens, 3), torch.ones(1, 1), margin=0.3)


@pytest.mark.parametrize("frame", [1, 2, 7, 31, 150, 193])
def test_frames_and_blocks_end_at_different_tokens(isa, frame):
    F = 460 // frame
    c = torch.rand(F, F) * (torch.rand(F, F) < 0.7)
    against_reference(features(1, F, frame, 4), features(1, F, frame, 4), c)


def test_margins_at_the_edge(isa):
    """A difference equal to the margin counts nothing, and equal features have no gradient."""
    student = torch.zeros(1, 1, 64, 2)  # whose weights are exact
    student[..., 0] = 1
    teacher = student.clone()
    teacher[0, 0, ::2] = torch.tensor([0.0, 1.0])  # similarities 1 and 0
    for margin, expected in ((0.0, 0.5), (0.5, 0.25), (1.0, 0.0)):
        value, gradient = value_and_gradient(loss, student, teacher, pair_weight=torch.ones(1, 1), margin=margin)
        assert value == expected and (margin < 1 or (gradient == 0).all())
    for distance in ("l1", "l2"):
        same = dict(pair_weight=torch.ones(1, 1), distance=distance, similarity="dot", backend="native")
        value, gradient = value_and_gradient(loss, teacher, teacher.clone(), **same)
        assert value == 0 and (gradient == 0).all()


@pytest.mark.parametrize("distance", ["l1", "l2"])
def test_a_similarity_of_zero_is_kept(isa, distance):
    student, teacher = features(1, 2, 30, 8), features(1, 2, 30, 8)
    student[0, 1, 7] = 0
    options = dict(distance=distance, negatives="clamp", similarity="dot")
    against_reference(student, teacher, torch.ones(2, 2), **options)


@pytest.mark.parametrize("scale", [1e-30, 1e-12, 1e-7, 1e12, 1e18])
def test_features_far_from_one(isa, scale):
    """Whose products are far apart: norms far below and just below the floor, and squares near the end of float32."""
    student, teacher = scale * features(1, 2, 150, 20), features(1, 2, 150, 20)
    against_reference(student, teacher, torch.ones(2, 2))


@pytest.mark.parametrize("negatives", ["keep", "clamp", "clamp-teacher"])
@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("where", ["student", "teacher"])
@pytest.mark.parametrize("similarity", ["cosine", "dot"])
def test_not_a_number_out_of_its_video_alone(isa, similarity, where, bad, negatives):
    """From a token of a block of its own; the other video's answer is bit for bit what it is without."""
    tensors = {"student": features(2, 1, 230, 8), "teacher": features(2, 1, 230, 8)}
    options = dict(pair_weight=torch.ones(1, 1), similarity=similarity, negatives=negatives, reduction="none")
    clean = value_and_gradient(loss, **tensors, **options, backend="native")
    tensors[where][1, 0, 227, 3] = bad
    value, gradient = value_and_gradient(loss, **tensors, **options, backend="native", upstream=torch.ones(2))
    assert value[1].isnan() and torch.equal(value[0], clean[0][0]) and torch.equal(gradient[0], clean[1][0])
    assert gradient[1].isnan().all()


@pytest.mark.parametrize("where", ["student", "teacher"])
@pytest.mark.parametrize("options", [dict(negatives="clamp"), dict(negatives="clamp-teacher")], ids=str)
def test_a_similarity_of_minus_infinity_is_not_clamped(isa, options, where):
    tensors = {"student": torch.ones(1, 2, 1, 2), "teacher": torch.ones(1, 2, 1, 2)}
    tensors[where][0, 0, 0, 1], tensors[where][0, 1, 0, 1] = torch.inf, -1.0
    c = lgf.videorepa_pair_weight(2, "temporal")
    assert loss(**tensors, pair_weight=c, similarity="dot", backend="native", **options).isnan()


@pytest.mark.parametrize("where", ["student", "teacher"])
def test_a_norm_whose_square_overflows_is_not_a_number(isa, where):
    tensors = {"student": features(1, 2, 6, 8), "teacher": features(1, 2, 6, 8)}
    tensors[where][0, 1, 2] *= 1e25
    value, gradient = value_and_gradient(loss, **tensors, pair_weight=torch.ones(2, 2), backend="native")
    assert value.isnan() and gradient.isnan().all()


@pytest.mark.parametrize("distance", ["l1", "l2"])
@pytest.mark.parametrize("tokens", [3, 30], ids=["within a block", "with a block of its own"])
def test_a_frame_without_weight_is_no_part_of_a_tile(isa, tokens, distance):
    F = 20
    student, teacher = features(1, F, tokens, 8), features(1, F, tokens, 8)
    c = torch.ones(F, F)
    c[7] = c[:, 7] = 0
    options = dict(pair_weight=c, distance=distance, backend="native")
    expected = loss(student, teacher, **options)
    for features_of in (student, teacher):
        features_of[0, 7] = torch.nan
    assert torch.equal(loss(student, teacher, **options), expected)


@pytest.mark.parametrize("dtype", DTYPES)
def test_strides(isa, dtype):
    """Of videos, frames and tokens; only channels that are not contiguous are copied."""
    apart = features(3, 4, 2, 23, 2, 19, dtype=dtype)
    for student in (apart[::2, ::3, 1, :, 0], apart[0, :3, :, :11, 1], apart[:2, 1, :, :, 1, :].mT.contiguous().mT):
        teacher = features(*student.shape, dtype=dtype)[..., ::3]
        against_reference(student, teacher, torch.rand(student.shape[1], student.shape[1]))


@pytest.mark.parametrize("options", [{}, {"margin": 0.1}, {"distance": "l2"}, {"negatives": "clamp"}], ids=str)
@pytest.mark.parametrize(
    "weights", [lgf.moalign_pair_weight(9), torch.ones(9, 9).tril(1).triu(-1)], ids=["all", "band"]
)
def test_threads_change_no_bit(isa, weights, options):
    student, teacher, results = features(2, 9, 130, 20), features(2, 9, 130, 24), []
    for count in (1, 2, 3, 7, 64):
        with threads(count):
            results.append(value_and_gradient(loss, student, teacher, pair_weight=weights, backend="native", **options))
    for result in results[1:]:
        assert all(map(torch.equal, result, results[0]))


def test_a_video_is_the_same_in_any_batch(isa):
    student, teacher, c = features(3, 4, 100, 20), features(3, 4, 100, 20), lgf.moalign_pair_weight(4)
    options = dict(pair_weight=c, reduction="none", backend="native")
    value, gradient = value_and_gradient(loss, student, teacher, **options)
    for b in range(3):
        alone = value_and_gradient(loss, student[b, None], teacher[b, None], **options)
        assert torch.equal(alone[0][0], value[b]) and torch.equal(alone[1][0], gradient[b])


@pytest.mark.parametrize("distance", ["l1", "l2"])
def test_a_loss_without_gradient_is_the_same(isa, distance):
    student, teacher, c = features(1, 4, 100, 20), features(1, 4, 100, 20), lgf.moalign_pair_weight(4)
    options = dict(pair_weight=c, distance=distance, backend="native")
    value, _ = value_and_gradient(loss, student, teacher, **options)
    assert torch.equal(loss(student, teacher, **options), value)


def test_many_pairs_are_summed_accurately(isa):
    """All distances alike, so that every rounding of a sum in float32 alone would go the same way."""
    student, teacher = torch.zeros(1, 1, 6000, 1), torch.full((1, 1, 6000, 1), 0.7)
    value = loss(student, teacher, pair_weight=torch.ones(1, 1), similarity="dot", backend="native")
    assert abs(value.item() - torch.tensor(0.7).double().square().item()) < 5e-7


def test_instruction_sets_agree():
    student, teacher, results = features(2, 3, 150, 70), features(2, 3, 150, 40), []
    best = cpu.build_info()["isa"]
    for isa in cpu.isas():
        cpu.set_isa(isa)
        options = dict(pair_weight=torch.ones(3, 3), distance="l2", backend="native")
        results.append(value_and_gradient(loss, student, teacher, **options)[1])
    cpu.set_isa(best)
    assert all(relative_error(result, results[0].double()) < 1e-5 for result in results)


def test_squares_by_products_of_channels_where_they_are_faster(monkeypatch):
    asked = []
    monkeypatch.setattr(channel_grams, "is_faster", lambda *given: asked.append(given) or True)
    student, teacher = features(1, 2, 30, 4), features(1, 2, 30, 5)
    options = dict(pair_weight=torch.ones(2, 2), distance="l2")
    ours, theirs = (
        value_and_gradient(loss, student, teacher, backend=backend, **options) for backend in ("native", "portable")
    )
    assert len(asked) == 3 and all(map(torch.equal, ours, theirs))


def test_bad_calls_raise():
    f, weight = features(1, 2, 1, 4, 5), torch.ones(2, 2)
    described, losses = native.described(f), torch.empty(1)

    def call(student=described, shape=(1, 2, 1, 4), **options):
        given = dict(margin=0.0, squared=False, cosine=True, clamps_student=False, clamps_teacher=False, num_threads=1)
        cpu.token_relation(student, described, shape, weight.data_ptr(), losses.data_ptr(), None, **given | options)

    call()
    for wrong, message in [
        (dict(shape=(1, 2, 0, 4)), "shape"),
        (dict(shape=(1, 2, 2, 2)), "shape"),
        (dict(margin=-1.0), "margin"),
        (dict(margin=float("nan")), "margin"),
        (dict(margin=0.1, squared=True), "margin"),
        (dict(clamps_student=True), "clamps_teacher"),
        (dict(student=(described[0], "int8", *described[2:])), "dtype"),
        (dict(student=(*described[:2], 0, described[3])), "channels"),
    ]:
        with pytest.raises(ValueError, match=message):
            call(**wrong)
    with pytest.raises(ValueError, match="frames"):
        cpu.token_relation_rounds(weight.data_ptr(), 2, 0)


def some_weights(frames, density):
    c = torch.rand(frames, frames) * (torch.rand(frames, frames) < density)
    return c + c.mT


@pytest.mark.parametrize("density", [0.0, 0.02, 0.3, 1.0])
@pytest.mark.parametrize("frames, tokens", [(1, 1), (1, 500), (3, 700), (24, 150), (40, 3), (300, 1), (9, 448)])
def test_every_pair_with_a_weight_once_and_no_block_twice_in_a_round(isa, frames, tokens, density):
    """Two threads that add to the gradient of one block at the same time would lose sums, but by chance alone."""
    c = some_weights(frames, density)
    starts, rounds = cpu.token_relation_rounds(c.data_ptr(), frames, tokens)
    assert starts[0] == 0 and starts[-1] == frames * tokens
    assert all(0 < end - start <= 224 for start, end in itertools.pairwise(starts))
    covered = torch.zeros(frames * tokens, frames * tokens, dtype=torch.int8)
    for tiles in rounds:
        blocks = [block for tile in tiles for block in set(tile)]
        assert len(blocks) == len(set(blocks)) > 0
        for row, column in tiles:
            of_row, of_column = (slice(starts[block], starts[block + 1]) for block in (row, column))
            covered[of_row, of_column] += 1
            if row != column:
                covered[of_column, of_row] += 1
    weighted = (c != 0).repeat_interleave(tokens, 0).repeat_interleave(tokens, 1)
    assert covered.max() <= 1 and covered[weighted].all()


def test_rounds_are_few(isa):
    """As many as blocks where all pairs have a weight, each with half the blocks; all at once where no two share a block."""
    every, own, none = torch.ones(24, 24), torch.eye(24), torch.zeros(24, 24)
    starts, rounds = cpu.token_relation_rounds(every.data_ptr(), 24, 150)
    blocks = len(starts) - 1
    assert len(rounds) == blocks and {len(tiles) for tiles in rounds} <= {blocks // 2, blocks // 2 + 1}
    starts, rounds = cpu.token_relation_rounds(own.data_ptr(), 24, 150)
    assert starts == list(range(0, 3601, 150)) and list(map(sorted, rounds)) == [[(f, f) for f in range(24)]]
    assert cpu.token_relation_rounds(none.data_ptr(), 24, 150)[1] == []


def test_no_weights_at_all(isa):
    value, gradient = value_and_gradient(
        loss, features(1, 2, 9, 5), features(1, 2, 9, 5), pair_weight=torch.zeros(2, 2)
    )
    assert value == 0 and (gradient == 0).all()


@pytest.mark.parametrize("density", [0.1, 0.5])
def test_sparse_weights_on_several_threads(isa, density):
    with threads(4):
        against_reference(features(1, 8, 200, 3), features(1, 8, 200, 3), some_weights(8, density))
