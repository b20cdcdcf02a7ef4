"""Every alignment term against its formula, written out."""

import dataclasses

import pytest
import torch
from torch.nn.functional import mse_loss, normalize

from lgf_kernels import lgf_kl_loss, local_gram_flow, moalign_pair_weight, token_relation_loss, videorepa_pair_weight

pytest.importorskip("yaml")

from lgf_trainer.objectives.base import make_objective, on_grid_of, unread_options
from lgf_trainer.projector import Projector
from lgf_trainer.runtime.errors import TrainerError
from lgf_trainer.runtime.recipe import Alignment, Lgf, Relation, read_recipe, shipped_recipes
from lgf_trainer.runtime.recipe import Projector as ProjectorOptions

B, T, H, W, C, K = 2, 3, 4, 5, 6, 3
SETTINGS = {"window": K, "similarity": "cosine", "boundary": "exclude"}
OPTIONS = ProjectorOptions(hidden=8, widths=(8, 4), groups=2)


@pytest.fixture
def student():
    return torch.randn(B, T, H, W, C, requires_grad=True)


@pytest.fixture
def targets():
    forward, backward = torch.randn(2, B, T, H, W, 7)
    return {
        "teacher_forward": local_gram_flow(forward, window=K),
        "teacher_backward": local_gram_flow(backward, window=K),
        "features_sam2_forward": forward,
        "features_sam2_backward": backward,
        "features_dino": torch.randn(B, T, H, W, C),
        "features_coarse": torch.randn(B, T, 2, 3, 9),
        "masks": (torch.randn(B, T, H, W) > 0).float(),
    }


def shapes(targets):
    return {name: tensor.shape[1:] for name, tensor in targets.items()}


def teachers(targets):
    return [targets["features_sam2_forward"], targets["features_sam2_backward"]]


def loss(student, targets, settings=SETTINGS, **options):
    objective = make_objective(Alignment(**options), settings)
    return objective(student, {name: targets[name] for name in objective.tensors})


@pytest.mark.parametrize("direction", ["forward", "backward", "both"])
@pytest.mark.parametrize("boundary", ["exclude", "zero"])
@pytest.mark.parametrize("similarity", ["cosine", "dot"])
@pytest.mark.parametrize("divergence", ["kl", "l2"])
def test_lgf_of_cached_logits_is_lgf_of_the_features(student, targets, direction, boundary, similarity, divergence):
    shared = {"window": K, "similarity": similarity, "boundary": boundary}
    logits = [local_gram_flow(teacher, window=K, similarity=similarity) for teacher in teachers(targets)]
    cached = targets | dict(zip(("teacher_forward", "teacher_backward"), logits, strict=True))
    options = Lgf(direction=direction, divergence=divergence, temperature=0.3)
    actual = loss(student, cached, shared, lgf=options, k=0.3)
    expected = lgf_kl_loss(
        student, teachers(targets), teacher_weights=(0.3, 0.7), direction=direction, divergence=divergence,
        temperature=0.3, **shared,
    )  # fmt: skip
    torch.testing.assert_close(actual, expected)


def test_a_teacher_of_weight_0_is_not_read(student, targets):
    objective = make_objective(Alignment(k=1.0), SETTINGS)
    assert objective.tensors == ("teacher_forward",)
    torch.testing.assert_close(objective(student, targets), lgf_kl_loss(student, teachers(targets)[0], window=K))
    assert make_objective(Alignment(k=0.0), SETTINGS).tensors == ("teacher_backward",)


def test_separate_projectors(student, targets):
    other = torch.randn_like(student)
    actual = loss((student, other), targets, k=0.3, lgf=Lgf(fusion="separate"))
    forward, backward = teachers(targets)
    expected = 0.3 * lgf_kl_loss(student, forward, window=K) + 0.7 * lgf_kl_loss(other, backward, window=K)
    torch.testing.assert_close(actual, expected)
    both = make_objective(Alignment(lgf=Lgf(fusion="separate")), SETTINGS).make_projector(OPTIONS, 10, shapes(targets))
    one, two = both(torch.randn(1, 2, H, W, 10))
    assert one.shape == two.shape == (1, T, H, W, 4) and not torch.equal(one, two)


def test_fused_features(student, targets):
    forward, backward = teachers(targets)
    expected = lgf_kl_loss(student, 0.3 * forward + 0.7 * backward, window=K, direction="both")
    actual = loss(student, targets, k=0.3, lgf=Lgf(fusion="features", direction="both"))
    torch.testing.assert_close(actual, expected)


def test_squared_error_to_features(targets):
    student = torch.randn(B, T, H, W, 7)
    forward, backward = teachers(targets)
    expected = 0.3 * (student - forward).square().mean() + 0.7 * (student - backward).square().mean()
    torch.testing.assert_close(loss(student, targets, loss="features", k=0.3), expected)


def test_repa(student, targets):
    cosine = (normalize(student, dim=-1) * normalize(targets["features_dino"], dim=-1)).sum(-1)
    torch.testing.assert_close(loss(student, targets, loss="repa", features=("dino",)), 1 - cosine.mean())


@pytest.mark.parametrize("form", ["videorepa", "videorepa-spatial", "videorepa-temporal", "moalign"])
def test_token_relations(student, targets, form):
    weight = (
        moalign_pair_weight(T, 5.0) if form == "moalign" else videorepa_pair_weight(T, form.partition("-")[2] or "all")
    )
    margin = 0.0 if form == "moalign" else 0.1
    expected = token_relation_loss(student, targets["features_dino"], pair_weight=weight, margin=margin)
    relation = Relation(form=form, tau=5.0)
    actual = loss(student, targets, loss="relation", features=("dino",), relation=relation)
    torch.testing.assert_close(actual, expected)
    wide = dataclasses.replace(relation, margin=0.5)
    assert loss(student, targets, loss="relation", features=("dino",), relation=wide) < actual


@pytest.mark.parametrize("form", ["gram", "gram-clamped", "sara"])
def test_squared_token_relations(student, targets, form):
    z, m = (normalize(x.flatten(2, 3), dim=-1) for x in (student, targets["features_dino"]))
    s_z, s_m = z @ z.mT, m @ m.mT
    if form == "gram-clamped":
        s_z, s_m = s_z.clamp(min=0), s_m.clamp(min=0)
    actual = loss(student, targets, loss="relation", features=("dino",), relation=Relation(form=form))
    torch.testing.assert_close(actual, mse_loss(s_z, s_m))


def test_token_relations_to_two_teachers(student, targets):
    forward, backward = teachers(targets)
    weight = videorepa_pair_weight(T)
    one, other = (token_relation_loss(student, f, pair_weight=weight, margin=0.1) for f in (forward, backward))
    torch.testing.assert_close(loss(student, targets, loss="relation", k=0.3), 0.3 * one + 0.7 * other)


def test_features_on_a_coarser_grid(student, targets):
    pooled = on_grid_of(student, targets["features_coarse"])
    torch.testing.assert_close(pooled[:, :, 0, 0], student[:, :, :2, :2].mean((2, 3)))  # rows 0, 1 and columns 0, 1
    torch.testing.assert_close(pooled[:, :, 1, 2], student[:, :, 2:, 3:].mean((2, 3)))
    actual = loss(student, targets, loss="relation", features=("coarse",), relation=Relation(form="moalign"))
    expected = token_relation_loss(pooled, targets["features_coarse"], pair_weight=moalign_pair_weight(T))
    torch.testing.assert_close(actual, expected)


def test_mask_supervision(targets):
    logits = torch.randn(B, T, H, W, 1)
    p, mask = logits[..., 0].sigmoid(), targets["masks"]
    expected = -(mask * p.log() + (1 - mask) * (1 - p).log()).mean()
    torch.testing.assert_close(loss(logits, targets, loss="mask"), expected)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lgf": Lgf(temperature=0.0)}, "alignment: .*temperature"),
        ({"backend": "cuda"}, "alignment: .*backend"),
        ({"loss": "relation", "relation": Relation(form="moalign", tau=-1.0)}, "alignment: .*tau"),
    ],
)
def test_options_that_the_losses_refuse(options, message):
    with pytest.raises(TrainerError, match=message):
        make_objective(Alignment(**options), SETTINGS)


@pytest.mark.parametrize("options", [{}, {"lgf": Lgf(fusion="separate")}, {"loss": "mask"}, {"loss": "points"}])
def test_features_that_a_loss_does_not_read_are_refused(options):
    with pytest.raises(
        TrainerError, match=r"features names dino, and this loss reads .* of the cache\. Leave features out"
    ):
        make_objective(Alignment(features=("dino",), **options), SETTINGS)
    assert make_objective(Alignment(features=("dino",), lgf=Lgf(fusion="features")), SETTINGS).tensors == (
        "features_dino",
    )


def test_options_of_another_loss_are_named():
    changed = {"lgf": Lgf(direction="both"), "relation": Relation(form="moalign", tau=3.0)}
    assert unread_options(Alignment(**changed)) == ["alignment.relation.form", "alignment.relation.tau"]
    assert unread_options(Alignment(loss="relation", **changed)) == ["alignment.lgf.direction"]
    assert len(unread_options(Alignment(loss="none", **changed))) == 3
    for name in shipped_recipes():
        if (own := read_recipe(name).alignment).loss != "none":
            assert not unread_options(own), name


def test_no_alignment():
    assert make_objective(Alignment(loss="none"), SETTINGS) is None


def test_a_cache_that_does_not_say_how_it_was_made():
    with pytest.raises(TrainerError, match=r"settings\.json does not say its 'boundary'\. Make it with lgf extract"):
        make_objective(Alignment(), {"window": 3, "similarity": "cosine"})
    assert make_objective(Alignment(loss="repa", features=("dino",)), {})


@pytest.mark.parametrize(
    ("options", "frames", "channels"),
    [
        ({}, T, 4),
        ({"lgf": Lgf(fusion="features")}, T, 4),
        ({"loss": "features"}, T, 7),
        ({"loss": "repa", "features": ("dino",)}, T, C),
        ({"loss": "relation", "features": ("coarse",)}, T, 4),
        ({"loss": "mask"}, T, 1),
    ],
)
def test_projectors_put_out_what_the_objective_compares(targets, options, frames, channels):
    objective = make_objective(Alignment(**options), SETTINGS)
    projector = objective.make_projector(OPTIONS, 10, shapes(targets))
    projected = projector(torch.randn(B, 2, H, W, 10))
    assert projected.shape == (B, frames, H, W, channels)
    objective(projected, {name: targets[name] for name in objective.tensors}).backward()
    assert all(parameter.grad is not None for parameter in projector.parameters())
    assert any(isinstance(module, Projector) for module in projector.modules())


@pytest.mark.parametrize(
    "options", [{}, {"loss": "features"}, {"loss": "repa", "features": ("dino",)}, {"loss": "mask"}]
)
def test_losses_are_in_float32(targets, options):
    objective = make_objective(Alignment(**options), SETTINGS)
    channels = objective.channels(shapes(targets)) or (1 if options.get("loss") == "mask" else C)
    student = torch.randn(B, T, H, W, channels).bfloat16()
    half = {name: targets[name].half() for name in objective.tensors}
    assert objective(student, half).dtype == torch.float32


def test_crepa(student, targets):
    """Every frame to the teacher's neighbours by exp(-distance / tau)."""
    one, other = (normalize(x, dim=-1) for x in (student, targets["features_dino"]))
    distance = (torch.arange(T)[:, None] - torch.arange(T)).abs()
    for options, near in (({}, 1), ({"tau": 2.0, "neighbours": 2}, 2)):
        weight = torch.exp(-distance / options.get("tau", 1.0)) * (distance <= near)
        expected = (weight[..., None, None] * (1 - torch.einsum("bfhwc,bkhwc->bfkhw", one, other))).sum(2).mean()
        actual = loss(student, targets, loss="crepa", features=("dino",), options=options)
        torch.testing.assert_close(actual, expected)


def test_teachers_side_by_side(targets):
    """Their channels, each of length 1, are one target."""
    student = torch.randn(B, T, H, W, 7 + C)
    joined = torch.cat([normalize(targets[f"features_{name}"], dim=-1) for name in ("sam2_forward", "dino")], -1)
    options = {"loss": "repa", "features": ("sam2_forward", "dino"), "combine": "concat"}
    cosine = (normalize(student, dim=-1) * normalize(joined, dim=-1)).sum(-1)
    torch.testing.assert_close(loss(student, targets, **options), 1 - cosine.mean())
    squared = loss(student, targets, **(options | {"loss": "features"}))
    torch.testing.assert_close(squared, (student - joined).square().mean())


def test_three_teachers_with_weights_of_their_own(student, targets):
    names, weights = ("dino", "dino", "dino"), (0.5, 0.0, 2.0)
    one = loss(student, targets, loss="repa", features=("dino",))
    torch.testing.assert_close(loss(student, targets, loss="repa", features=names, weights=weights), 2.5 * one)


def test_options_of_a_kind_are_checked_and_stand_over_its_group():
    objective = make_objective(Alignment(options={"temperature": 0.3}, lgf=Lgf(direction="both")), SETTINGS)
    assert (objective.options.temperature, objective.options.direction) == (0.3, "both")
    with pytest.raises(TrainerError, match=r"alignment\.options: there is no key tau\. The nearest one is"):
        make_objective(Alignment(options={"tau": 1}), SETTINGS)
    with pytest.raises(TrainerError, match=r"alignment\.options: there is no key tau, and none is known here"):
        make_objective(Alignment(loss="repa", features=("dino",), options={"tau": 1}), SETTINGS)
