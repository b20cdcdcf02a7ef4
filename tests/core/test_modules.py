"""Every option of a loss as a function is one of its module, and has the same default."""

import inspect

import pytest
import torch
from support.numerics import features

import lgf_kernels as lgf

MODULES = {
    lgf.LocalGramFlowKLLoss: lgf.lgf_kl_loss,
    lgf.LocalGramFlowKLLossFromLogits: lgf.lgf_kl_loss_from_logits,
    lgf.PatchCosineLoss: lgf.patch_cosine_loss,
    lgf.PointCorrespondenceLoss: lgf.point_correspondence_loss,
    lgf.TokenRelationLoss: lgf.token_relation_loss,
}
#: Arguments of functions that a module makes by its form, and options whose default is that of the form, said by None.
BY_FORM = {"pair_weight", "frame_weight"}
OF_FORM = {(lgf.TokenRelationLoss, name) for name in ("margin", "distance", "negatives")}


def parameters(function) -> dict[str, object]:
    return {name: parameter.default for name, parameter in inspect.signature(function).parameters.items()}


def test_every_module_is_compared():
    public = [getattr(lgf, name) for name in lgf.__all__]
    modules = {it for it in public if inspect.isclass(it) and issubclass(it, torch.nn.Module)}
    functions = {
        it for it in public if inspect.isfunction(it) and it.__name__.removesuffix("_from_logits").endswith("_loss")
    }
    assert modules == set(MODULES) and functions == set(MODULES.values())


@pytest.mark.parametrize("module", MODULES)
def test_every_option_of_the_function_is_one_of_the_module(module):
    of_call, fixed = parameters(module.forward), parameters(module)
    options = {k: v for k, v in parameters(MODULES[module]).items() if k not in of_call and k not in BY_FORM}
    assert set(options) - set(fixed) == set()
    for name, default in options.items():
        assert fixed[name] == (None if (module, name) in OF_FORM else default), name


def test_options_of_token_relations_are_passed_on():
    z, m = features(2, 3, 4, 5, dtype=torch.float64), features(2, 3, 4, 6, dtype=torch.float64)
    c = lgf.videorepa_pair_weight(3, dtype=torch.float64)
    for options in (
        {"similarity": "dot"},
        {"negatives": "clamp", "margin": 0.1},
        {
            "distance": "l2",
            "negatives": "clamp-teacher",
            "reduction": "none",
        },  # without the form's margin, which is none of l2
    ):
        module = lgf.TokenRelationLoss("videorepa", **options)
        margin = 0.0 if "distance" in options else 0.1
        assert torch.equal(module(z, m), lgf.token_relation_loss(z, m, pair_weight=c, **options | {"margin": margin}))
        assert all(f"{name}={value!r}" in repr(module) for name, value in options.items())


def test_weights_of_a_module_are_as_exact_as_its_student():
    """Rounded to float32 they would be off by 1e-8."""
    F = 5
    z, m = features(1, F, 4, 6, dtype=torch.float64), features(1, F, 4, 6, dtype=torch.float64)
    apart = (torch.arange(F)[:, None] - torch.arange(F)).abs().double()
    soft = torch.exp(-apart / 10) / F**2
    soft.fill_diagonal_(1 / F)
    near = torch.exp(-apart).where(apart <= 1, 0)
    relation = {"moalign": soft, "videorepa": torch.full((F, F), 1 / F**2, dtype=torch.float64)}
    relation["videorepa-spatial"] = torch.eye(F, dtype=torch.float64) / F
    relation["videorepa-temporal"] = (1 - F * relation["videorepa-spatial"]) / (F * (F - 1))
    for form, c in relation.items():
        module = lgf.TokenRelationLoss(form)
        truth = lgf.token_relation_loss(z, m, pair_weight=c, margin=module.margin, backend="reference")
        torch.testing.assert_close(module(z, m), truth, rtol=1e-12, atol=0)
    truth = lgf.patch_cosine_loss(z, m, frame_weight=near, backend="reference")
    torch.testing.assert_close(lgf.PatchCosineLoss("crepa")(z, m), truth, rtol=1e-12, atol=0)


@pytest.mark.parametrize("make", [lgf.moalign_pair_weight, lgf.videorepa_pair_weight, lgf.crepa_frame_weight])
def test_types_of_weights(make):
    assert make(3).dtype == torch.float32 and make(3, dtype=torch.float64).dtype == torch.float64
    with pytest.raises(TypeError, match=r"`dtype` must be torch.float32, or torch.float64 .* got torch.float16"):
        make(3, dtype=torch.float16)
