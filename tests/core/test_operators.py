"""The operators as PyTorch's machinery meets them: opcheck, compile, autocast, checkpointing, second derivatives."""

import copy

import pytest
import torch
import torch._inductor.config
from support.numerics import backends_of, features, value_and_gradient
from support.pairs import every_value
from torch._dynamo.testing import CompileCounterWithBackend
from torch._subclasses import FakeTensor, FakeTensorMode
from torch.autograd import forward_ad
from torch.testing._internal.two_tensor import TwoTensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

import lgf_kernels as lgf
from lgf_kernels import gram_flow, token_relation
from lgf_kernels.core.registry import implementation
from lgf_kernels.point_correspondence import operators as points


def tracks_of(teacher):
    """Queries (B, 8, 3), targets (B, 8, T, 2) and weights (B, 8, T) made of a teacher (B, T, H, W, 7)."""
    T, H, W = teacher.shape[1:4]
    numbers = teacher.flatten(1).sigmoid()
    queries = numbers[:, :24].unflatten(1, (8, 3)) * torch.tensor([T, H - 1, W - 1], device=teacher.device)
    queries = torch.cat([queries[..., :1].floor(), queries[..., 1:]], -1)
    return queries, 3 * numbers[:, : 16 * T].unflatten(1, (8, T, 2)), numbers[:, : 8 * T].unflatten(1, (8, T))


LOSSES = {
    "lgf_kl": lambda student, teacher, **o: lgf.lgf_kl_loss(student, [teacher, teacher.half()], window=3, **o),
    "lgf_kl token weights": lambda student, teacher, **o: lgf.lgf_kl_loss(
        student, teacher, window=3, direction="both", token_weight=teacher[:, 1:, ..., 0].abs(), **o
    ),
    "lgf_kl none": lambda student, teacher, **o: lgf.lgf_kl_loss(student, teacher, reduction="none", **o).sum(),
    "from logits": lambda student, teacher, **o: lgf.lgf_kl_loss_from_logits(
        student, lgf.local_gram_flow(teacher, backend="portable").half(), **o
    ),
    "local_gram_flow": lambda student, teacher, **o: (lgf.local_gram_flow(student, **o) ** 2).mean(),
    "token_relation": lambda student, teacher, **o: lgf.token_relation_loss(
        student, teacher, pair_weight=lgf.moalign_pair_weight(student.shape[1]), **o
    ),
    "token_relation none": lambda student, teacher, **o: lgf.token_relation_loss(
        student, teacher, pair_weight=torch.ones(student.shape[1], student.shape[1]), reduction="none", **o
    ).sum(),
    "point_correspondence": lambda student, teacher, **o: (
        lgf.point_correspondence(student, tracks_of(teacher)[0], **o).square().mean()
    ),
    "point_correspondence_loss": lambda student, teacher, **o: lgf.point_correspondence_loss(
        student, *tracks_of(teacher), **o
    ),
    "point_correspondence_loss none": lambda student, teacher, **o: lgf.point_correspondence_loss(
        student, *tracks_of(teacher)[:2], window=1, distance="l1", reduction="none", **o
    ).sum(),
}
losses = pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES.keys())


def student_and_teacher(dtype=torch.float32):
    return features(2, 3, 4, 5, 6, dtype=dtype), features(2, 3, 4, 5, 7)


class Watch(TorchDispatchMode):
    """The names of all operators that pass the dispatcher."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.seen.append(function.name())
        return function(*args, **(kwargs or {}))


def opcheck(operator, arguments):
    with torch.random.fork_rng():
        torch.library.opcheck(operator, arguments)


@pytest.mark.parametrize("backend", backends_of("lgf_kl"))
@every_value(direction=("forward", "both"), reduction=("mean", "none"))
def test_opcheck_lgf_kl(backend, direction, reduction):
    options = (3, 0.1, "cosine", "exclude", "kl", direction, reduction)
    student, teacher = student_and_teacher()
    arguments = (student.requires_grad_(), [teacher, teacher], [0.5, 0.5], torch.rand(2, 2, 4, 5), False, True, backend)
    opcheck(torch.ops.lgf.lgf_kl.default, (*arguments, *options))
    loss, residual = (x.detach() for x in torch.ops.lgf.lgf_kl(*arguments, *options))
    opcheck(
        torch.ops.lgf.lgf_kl_backward.default,
        (torch.randn_like(loss), student.detach(), residual, torch.rand(2, 2, 4, 5), backend, *options),
    )


@pytest.mark.parametrize("backend", backends_of("lgf_kl"))
def test_opcheck_local_gram_flow(backend):
    student, _ = student_and_teacher(torch.bfloat16)
    opcheck(torch.ops.lgf.local_gram_flow.default, (student.requires_grad_(), 3, "cosine", "forward", backend))
    opcheck(
        torch.ops.lgf.local_gram_flow_backward.default,
        (torch.randn(2, 2, 4, 5, 9), student.detach(), 3, "cosine", "forward", backend),
    )


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_opcheck_token_relation(reduction):
    student, teacher = (f.flatten(2, 3) for f in student_and_teacher(torch.bfloat16))
    arguments = (student.detach().requires_grad_(), teacher, torch.ones(3, 3), 0.1, reduction, True, "portable")
    opcheck(torch.ops.lgf.token_relation.default, arguments)
    loss, residual = (x.detach() for x in torch.ops.lgf.token_relation(*arguments))
    opcheck(
        torch.ops.lgf.token_relation_backward.default,
        (torch.randn_like(loss), residual, reduction, torch.bfloat16, "portable"),
    )


@pytest.mark.parametrize("backend", backends_of("point_correspondence"))
@pytest.mark.parametrize(("window", "reduction"), [(None, "mean"), (1, "none")])
def test_opcheck_point_correspondence(backend, window, reduction):
    student, teacher = student_and_teacher(torch.bfloat16)
    queries, targets, weight = tracks_of(teacher)
    options = (True, backend, 0.05, window)
    opcheck(torch.ops.lgf.point_correspondence.default, (student.requires_grad_(), queries, *options))
    places, state = (x.detach() for x in torch.ops.lgf.point_correspondence(student, queries, *options))
    arguments = (torch.randn_like(places), student.detach(), queries, places, state, backend, 0.05, window)
    opcheck(torch.ops.lgf.point_correspondence_backward.default, arguments)
    options = (*options, "huber", 1.0, reduction)
    arguments = (student, queries, targets, weight)
    opcheck(torch.ops.lgf.point_correspondence_loss.default, (*arguments, *options))
    loss, places, state = (x.detach() for x in torch.ops.lgf.point_correspondence_loss(*arguments, *options))
    opcheck(
        torch.ops.lgf.point_correspondence_loss_backward.default,
        (torch.randn_like(loss), student.detach(), queries, targets, weight, places, state, *options[1:]),
    )


@losses
def test_dispatch_modes_see_the_operators(loss):
    """Eager calls pass the dispatcher by; profilers, checkpoint policies and fake tensors still meet the operators."""
    student, teacher = student_and_teacher()
    with Watch() as watch:
        watched = value_and_gradient(loss, student, teacher)
    names = {name for name in watch.seen if name.startswith("lgf::")}
    (backward,) = (name for name in names if name.endswith("_backward"))
    assert backward.removesuffix("_backward") in names
    assert all(torch.equal(a, b) for a, b in zip(watched, value_and_gradient(loss, student, teacher), strict=True))
    with FakeTensorMode(allow_non_fake_inputs=True):
        value = loss(torch.empty(2, 3, 4, 5, 6, requires_grad=True), torch.empty(2, 3, 4, 5, 7))
    assert isinstance(value, FakeTensor) and value.requires_grad


@losses
@pytest.mark.parametrize("dynamic", [False, True])
def test_compiles_without_a_graph_break(loss, dynamic):
    student, teacher = student_and_teacher()
    compiled = torch.compile(loss, fullgraph=True, dynamic=dynamic, backend="aot_eager")
    for ours, theirs in zip(
        value_and_gradient(compiled, student, teacher), value_and_gradient(loss, student, teacher), strict=True
    ):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("backend", backends_of("lgf_kl"))
def test_other_sizes_are_not_compiled_anew(backend):
    """The size of what a forward keeps for its backward follows from sizes that nobody knows yet."""
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(
        lambda student: lgf.lgf_kl_loss(student, student.detach(), window=3, backend=backend),
        fullgraph=True, dynamic=True, backend=counter,
    )  # fmt: skip
    counts = []
    for sizes in ((2, 3, 4, 5), (3, 4, 5, 6), (4, 5, 6, 7)):
        value_and_gradient(compiled, features(*sizes, 8))
        counts.append(counter.frame_count)
    assert len(set(counts)) == 1


def test_compiles_with_inductor():
    """The default compiler, with arithmetic before and after the loss."""
    loss = lambda student, teacher: 0.5 * lgf.lgf_kl_loss(student * 2, teacher, window=3)  # noqa: E731
    student, teacher = student_and_teacher()
    compiled = torch.compile(loss, fullgraph=True)
    with torch._inductor.config.patch(force_disable_caches=True):  # those may be of other versions of the operators
        results = value_and_gradient(compiled, student, teacher)
    for ours, theirs in zip(results, value_and_gradient(loss, student, teacher), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_compile_sees_use_backend_and_the_environment(monkeypatch):
    student, teacher = student_and_teacher()

    def run():
        torch.compiler.reset()
        return torch.compile(LOSSES["lgf_kl"], fullgraph=True, backend="aot_eager")(student, teacher)

    monkeypatch.setenv("LGF_BACKEND", "portable")
    assert torch.equal(run(), LOSSES["lgf_kl"](student, teacher, backend="portable"))
    monkeypatch.setenv("LGF_BACKEND", "nonsense")
    with pytest.raises(Exception, match="nonsense"):
        run()


@losses
def test_autocast_changes_nothing(loss):
    student, teacher = student_and_teacher(torch.bfloat16)
    plain = value_and_gradient(loss, student, teacher)
    leaf = student.detach().requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = loss(leaf, teacher)
        (gradient,) = torch.autograd.grad(value, leaf)
    assert value.dtype == torch.float32
    assert torch.equal(value, plain[0]) and torch.equal(gradient, plain[1])


def test_autocast_changes_nothing_in_the_oracle():
    student, teacher = student_and_teacher()
    plain = lgf.token_relation_loss(student, teacher, pair_weight=torch.ones(3, 3), backend="reference")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = lgf.token_relation_loss(student, teacher, pair_weight=torch.ones(3, 3), backend="reference")
    assert torch.equal(plain, cast)


@losses
@pytest.mark.parametrize("use_reentrant", [False, True])
def test_activation_checkpointing(loss, use_reentrant):
    student, teacher = student_and_teacher()
    plain = value_and_gradient(loss, student, teacher)
    again = value_and_gradient(lambda s, t: checkpoint(loss, s, t, use_reentrant=use_reentrant), student, teacher)
    assert all(torch.equal(a, b) for a, b in zip(plain, again, strict=True))


@losses
def test_no_gradient_is_asked_for(loss):
    student, teacher = student_and_teacher()
    with torch.no_grad():
        frozen = loss(student.requires_grad_(), teacher)
    with torch.inference_mode():
        inference = loss(student.detach(), teacher)
    assert not frozen.requires_grad and torch.equal(frozen, inference)
    assert torch.equal(frozen, loss(student, teacher).detach())


#: From which of their outputs on the operators return what they keep.
KEEPING = dict.fromkeys(
    ("lgf::lgf_kl", "lgf::token_relation", "lgf::point_correspondence", "lgf::point_correspondence_loss"), 1
)


@pytest.mark.parametrize("name", [name for name in LOSSES if name != "local_gram_flow"])
def test_nothing_is_kept_for_a_backward_that_cannot_be(name):
    """A loss that is only measured must not cost the time and memory of its gradient."""
    kept = []

    class Keep(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            result = function(*args, **(kwargs or {}))
            if function.name() in KEEPING:
                kept.append(sum(part.numel() for part in result[KEEPING[function.name()] :]))
            return result

    student, teacher = student_and_teacher()
    for leaf, grad_mode in ((student, True), (student.clone().requires_grad_(), False)):
        with torch.set_grad_enabled(grad_mode), Keep():
            LOSSES[name](leaf, teacher)
    assert kept == [0, 0]


@losses
def test_a_backward_makes_no_gradient_of_what_was_kept_for_it(loss):
    """It would be zeros, as large as what a forward keeps."""
    student, teacher = student_and_teacher()
    value = loss(student.requires_grad_(), teacher)
    with Watch() as watch:
        value.backward()
    assert any(name.startswith("lgf::") for name in watch.seen) and "aten::zeros" not in watch.seen


def test_what_is_kept_for_a_backward_has_no_gradient():
    student, teacher = (f.flatten(2, 3) for f in student_and_teacher())
    _, kept = torch.ops.lgf.token_relation(
        student.requires_grad_(), teacher, torch.ones(3, 3), 0.1, "mean", True, "portable"
    )
    assert torch.autograd.grad(kept.sum(), student, allow_unused=True) == (None,)
    student, teacher = student_and_teacher()
    options = (True, "portable", 0.05, None, "huber", 1.0, "mean")
    _, *kept = torch.ops.lgf.point_correspondence_loss(student.requires_grad_(), *tracks_of(teacher), *options)
    for part in kept:
        assert torch.autograd.grad(part.sum(), student, allow_unused=True) == (None,)
    student, teacher = student_and_teacher()
    options = (3, 0.1, "cosine", "exclude", "kl", "forward", "mean")
    _, kept = torch.ops.lgf.lgf_kl(student.requires_grad_(), [teacher], [1.0], None, False, True, "portable", *options)
    assert torch.autograd.grad(kept.sum(), student, allow_unused=True) == (None,)


@losses
def test_gradient_goes_through_to_what_made_the_student(loss):
    student, teacher = student_and_teacher()
    layer = torch.nn.Linear(6, 9)
    loss(layer(student), teacher).backward()
    truth = copy.deepcopy(layer)
    truth.zero_grad()
    loss(truth(student), teacher, backend="reference").backward()
    torch.testing.assert_close(layer.weight.grad, truth.weight.grad, rtol=1e-4, atol=1e-7)


@losses
def test_second_derivative_is_refused(loss):
    student, teacher = student_and_teacher()
    student.requires_grad_()
    (gradient,) = torch.autograd.grad(loss(student, teacher), student, create_graph=True)
    with pytest.raises(ValueError, match="once differentiable"):
        gradient.square().sum().backward()


@losses
def test_threads_do_not_change_the_portable_result_beyond_rounding(loss):
    student, teacher = student_and_teacher()
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = value_and_gradient(loss, student, teacher, backend="portable")
        torch.set_num_threads(2)
        two = value_and_gradient(loss, student, teacher, backend="portable")
    finally:
        torch.set_num_threads(threads)
    for a, b in zip(one, two, strict=True):
        torch.testing.assert_close(a, b)


def test_autograd_calls_the_operators_by_name():
    """As profilers, anomaly detection and a printed loss show them."""
    student, teacher = student_and_teacher()
    student.requires_grad_()
    pair_weight = torch.ones(3, 3)
    assert "lgf_klBackward" in repr(lgf.lgf_kl_loss(student, teacher))
    assert "local_gram_flowBackward" in repr(lgf.local_gram_flow(student))
    assert "point_correspondence_lossBackward" in repr(lgf.point_correspondence_loss(student, *tracks_of(teacher)))
    assert "point_correspondenceBackward" in repr(lgf.point_correspondence(student, tracks_of(teacher)[0]).grad_fn)
    assert "token_relationBackward" in repr(lgf.token_relation_loss(student, teacher, pair_weight=pair_weight))


@losses
def test_numbers_that_memory_does_not_hold(loss):
    """A negation that torch has put off, and teachers that are wrappers around the tensor with the numbers."""
    student, teacher = student_and_teacher()
    plain = value_and_gradient(loss, student, teacher)
    negated = value_and_gradient(loss, torch._neg_view(-student), torch._neg_view(-teacher))
    assert all(torch.equal(a, b) for a, b in zip(plain, negated, strict=True))
    wrapped = value_and_gradient(loss, student, TwoTensor(teacher, teacher))
    assert all(torch.equal(getattr(a, "a", a), b) for a, b in zip(wrapped, plain, strict=True))


def test_caches_and_upstream_gradients_that_memory_does_not_hold():
    student, teacher = student_and_teacher()
    cache, upstream = lgf.local_gram_flow(teacher), torch.randn(2, 2, 4, 5)

    def run(cache, upstream):
        leaf = student.clone().requires_grad_()
        value = lgf.lgf_kl_loss_from_logits(leaf, cache, reduction="none")
        return value, *torch.autograd.grad(value, leaf, upstream)

    plain = run(cache, upstream)
    assert all(map(torch.equal, run(torch._neg_view(-cache), torch._neg_view(-upstream)), plain))
    assert (run(cache, torch._efficientzerotensor(upstream.shape))[1] == 0).all()


@losses
def test_function_transforms(loss):
    student, teacher = features(3, 2, 3, 4, 5, 6), features(2, 3, 4, 5, 7)
    alone = [value_and_gradient(loss, one, teacher) for one in student]
    gradient, value = torch.func.grad_and_value(loss)(student[0], teacher)
    torch.testing.assert_close((value, gradient), tuple(alone[0]))
    for_each = torch.vmap(torch.func.grad(loss), in_dims=(0, None))(student, teacher)
    torch.testing.assert_close(for_each, torch.stack([gradient for _, gradient in alone]))
    with pytest.raises(lgf.OnceDifferentiableError, match="once differentiable"):
        torch.func.grad(lambda s: torch.func.grad(loss)(s, teacher).square().sum())(student[0])


@losses
def test_forward_mode_is_refused(loss):
    """torch would drop the tangents silently."""
    student, teacher = student_and_teacher()
    with pytest.raises(lgf.BackendUnavailableError, match=r"the kernels have no derivative for .*jvp"):
        torch.func.jvp(lambda s: loss(s, teacher), (student,), (student,))
    for grad_mode in (True, False):
        with forward_ad.dual_level(), torch.set_grad_enabled(grad_mode):
            dual = forward_ad.make_dual(student, student)
            with pytest.raises(lgf.BackendUnavailableError, match='backend="reference"'):
                loss(dual, teacher)
            assert forward_ad.unpack_dual(loss(dual, teacher, backend="reference")).tangent is not None


@losses
@pytest.mark.parametrize("backend", ["portable", "reference"])
def test_devices_without_autocast(loss, backend):
    """On meta tensors the losses tell the shapes of what they would return."""
    student, teacher = student_and_teacher()
    with torch.device("meta"):
        value = loss(
            torch.empty_like(student, device="meta"), torch.empty_like(teacher, device="meta"), backend=backend
        )
    truth = loss(student, teacher, backend=backend)
    assert value.is_meta and value.shape == truth.shape and value.dtype == truth.dtype


@losses
def test_vmap_is_a_call_for_each(loss, recwarn):
    """In any dimension of the student, with teachers of their own or one in common, and a gradient for each."""
    student, teacher = features(2, 3, 4, 5, 3, 6), features(3, 2, 3, 4, 5, 7)

    def values_and_gradient(calls):
        leaf = student.clone().requires_grad_()
        values = calls(leaf)
        return values, torch.autograd.grad((values * torch.tensor([1.0, 2.0, 3.0])).sum(), leaf)[0]

    mapped = values_and_gradient(lambda leaf: torch.vmap(loss, in_dims=(4, 0))(leaf, teacher))
    alone = values_and_gradient(lambda leaf: torch.stack(list(map(loss, leaf.unbind(4), teacher))))
    torch.testing.assert_close(mapped, alone)
    compiled = torch.compile(torch.vmap(loss, in_dims=(4, 0)), fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(values_and_gradient(lambda leaf: compiled(leaf, teacher)), alone)
    in_common = torch.vmap(loss, in_dims=(4, None))(student, teacher[0])
    torch.testing.assert_close(in_common[0], alone[0][0])
    assert not [warning for warning in recwarn if "performance drop" in str(warning.message)]


def test_vmap_does_not_drop_the_gradient_of_a_teacher():
    student, teacher = features(3, 2, 3, 4, 5, 6), features(3, 2, 3, 4, 5, 6, requires_grad=True)
    with pytest.raises(ValueError, match="requires grad, but the loss has no gradient for it"):
        torch.vmap(lgf.lgf_kl_loss)(student, teacher)


@losses
def test_many_upstream_gradients_at_once(loss):
    """What vectorised Jacobians do, with a vmap of its own kind."""
    student, teacher = student_and_teacher()
    student.requires_grad_()
    value, upstream = loss(student, teacher), torch.tensor([1.0, -2.0])
    (gradients,) = torch.autograd.grad(value, student, upstream, is_grads_batched=True, retain_graph=True)
    (one,) = torch.autograd.grad(value, student)
    torch.testing.assert_close(gradients, torch.stack([one, -2 * one]))


@losses
def test_meta_tensors_of_any_size(loss, monkeypatch):
    """2^33 elements: what holds no numbers is not computed with, tile by tile, and no size is cut to 32 bits."""
    for family in (gram_flow.operators, token_relation.operators, points):
        monkeypatch.setattr(family, "implementation", lambda *names: implementation(*names)._replace(forward=None))
    student = torch.empty(2, 64, 256, 256, 1024, dtype=torch.bfloat16, device="meta", requires_grad=True)
    with torch.device("meta"):
        loss(student, torch.empty(2, 64, 256, 256, 32)).backward()
    assert student.grad.shape == student.shape and student.grad.dtype == torch.bfloat16
