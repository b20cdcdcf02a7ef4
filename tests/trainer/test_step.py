"""The step against its formula: target, accumulation, weight, schedules, clipping, moving average."""

import itertools
from contextlib import nullcontext

import pytest
import torch
from torch import nn

pytest.importorskip("diffusers")

from lgf_trainer import step
from lgf_trainer.optimiser import GroupedAdamW, MovingAverage
from lgf_trainer.runtime.recipe import Alignment, Optimiser
from lgf_trainer.step import AlignedDiffusion, Batch, Watch, training_steps
from lgf_trainer.tasks.diffusion import alignment_weight

SHAPE = (2, 3, 4, 4, 6)  # windows, frames, channels, rows, columns


class Linear(nn.Module):
    """(prediction, projected) of the right shapes, and nothing else."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Parameter(torch.tensor(0.3)), nn.Parameter(torch.tensor(0.2))

    def forward(self, hidden, shift=0.0):
        return self.a * hidden[:, :, :4] + shift, self.b * self.a * hidden


def batch(seed=0, **changes):
    rng = torch.Generator().manual_seed(seed)
    hidden, target = torch.randn(2, *SHAPE, generator=rng)
    return Batch(**({"hidden": hidden, "target": target, "conditions": {}} | changes))


def losses_of(model, one, objective=None, **options):
    return AlignedDiffusion(model, objective, **options).losses(one)


def objective(projected, _):
    return projected.square().mean()


def optimiser(model, rate=0.0, clip=1e9, **settings):
    settings = Optimiser(rate=rate, warmup=0, **settings)
    return GroupedAdamW({"all": (model.parameters(), settings)}, steps=10, clip=clip)


def run(model, batches, steps=1, weight=0.5, **options):
    chosen = options.pop("optimiser", None) or optimiser(model)
    return list(
        training_steps(
            AlignedDiffusion(model, objective, **options), batches, chosen, range(steps), weight=lambda _: weight
        )
    )


def test_the_losses_are_the_formulas():
    model, one = Linear(), batch(conditions={"shift": 0.1})
    diffusion, alignment = losses_of(model, one, objective)
    torch.testing.assert_close(diffusion, (0.3 * one.hidden + 0.1 - one.target).square().mean())
    torch.testing.assert_close(alignment, (0.06 * one.hidden).square().mean())


def test_the_model_runs_in_autocast_and_the_losses_do_not():
    where = []

    class Noting(nn.Module):
        def forward(self, hidden):
            where.append(torch.is_autocast_enabled("cpu"))
            return hidden, hidden

    def noting(projected, _):
        where.append(torch.is_autocast_enabled("cpu"))
        return projected.mean()

    losses_of(Noting(), batch(), noting, autocast=lambda: torch.autocast("cpu", torch.bfloat16))
    assert where == [True, False]


def test_half_precision_predictions_are_compared_in_float32():
    class Half(Linear):
        def forward(self, hidden):
            return super().forward(hidden)[0].bfloat16(), None

    model = Half()
    diffusion, _ = losses_of(model, batch())
    assert diffusion.dtype == torch.float32
    diffusion.backward()
    exact = Linear()
    losses_of(exact, batch())[0].backward()
    torch.testing.assert_close(model.a.grad, exact.a.grad, rtol=1e-2, atol=0)


def test_accumulation_is_the_mean_over_one_large_batch():
    parts = [batch(0), batch(1)]
    large = Batch(*(torch.cat([getattr(p, name) for p in parts]) for name in ("hidden", "target")), {})
    accumulated, at_once = Linear(), Linear()
    a = run(accumulated, [parts], optimiser=optimiser(accumulated, rate=0.1))
    b = run(at_once, [[large]], optimiser=optimiser(at_once, rate=0.1))
    torch.testing.assert_close(a, b)
    assert not any(loss.requires_grad for loss in a[0]), "what is yielded holds no graph"
    torch.testing.assert_close(accumulated.state_dict(), at_once.state_dict())


def test_gradients_are_exchanged_with_the_last_batch_only(monkeypatch):
    asked = []
    monkeypatch.setattr(step, "accumulating", lambda _, more: nullcontext(asked.append(more)))
    run(Linear(), [[batch()] * 3, [batch()]], steps=2)
    assert asked == [True, True, False, False]


def gradients(weight):
    model = Linear()
    one = batch()
    diffusion, alignment = losses_of(model, one, objective)
    total = diffusion + weight * alignment
    return torch.stack(torch.autograd.grad(total, list(model.parameters()), allow_unused=True)).norm()


@pytest.mark.parametrize("weight", [0.0, 0.5, 3.0])
def test_the_weight_is_that_of_the_alignment(weight):
    (losses,) = run(Linear(), [[batch()]], weight=weight)
    torch.testing.assert_close(losses.gradient, gradients(weight))


def test_without_a_weight_the_alignment_is_measured_only():
    model = Linear()
    (losses,) = run(model, [[batch()]], weight=None, optimiser=optimiser(model, rate=0.1))
    assert losses.alignment > 0 and model.b == torch.tensor(0.2) and model.a != torch.tensor(0.3)


def test_without_gradients_nothing_is_recorded():
    model = Linear()
    with torch.no_grad():
        losses = losses_of(model, batch(), lambda projected, _: model.a * projected.mean())
    assert not any(loss.requires_grad for loss in losses)


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (lambda projected, _: projected.flatten(1).mean(1), "got shape (2,), with a gradient"),
        (lambda projected, _: projected.detach().mean(), "got shape (), without a gradient"),
    ],
)
def test_an_objective_that_teaches_nothing_is_refused(wrong, words):
    with pytest.raises(ValueError, match="must return a scalar that depends on the projected features") as caught:
        losses_of(Linear(), batch(), wrong)
    assert words in str(caught.value)
    assert AlignedDiffusion(Linear(), objective).losses(batch(), trained=False)


def test_without_an_objective_the_alignment_is_0():
    task = AlignedDiffusion(Linear(), None)
    (losses,) = training_steps(task, [[batch()]], optimiser(Linear()), range(1), weight=lambda _: 0.5)
    assert losses.alignment == 0 and losses.diffusion > 0


def test_every_step_has_its_number():
    model, asked, batches = Linear(), [], itertools.repeat([batch()], 4)
    adamw = GroupedAdamW({"all": (model.parameters(), Optimiser(rate=1.0, warmup=4))}, steps=10, clip=1.0)
    for _ in training_steps(
        AlignedDiffusion(model, objective), batches, adamw, range(2, 5),
        weight=lambda step: asked.append(step) or 1.0,
    ):  # fmt: skip
        asked.append(adamw.adamw.param_groups[0]["lr"])
    assert asked == [2, 0.75, 3, 1.0, 4, 1.0]
    assert len(list(batches)) == 1, "none is taken for a step that is not made"


def test_groups_have_their_own_rates_and_settings():
    a, b = nn.Parameter(torch.ones(1)), nn.Parameter(torch.ones(1))
    groups = {
        "a": ([a], Optimiser(rate=0.1, warmup=0, weight_decay=0.0)),
        "b": ([b], Optimiser(rate=0.2, warmup=0, weight_decay=0.5)),
    }
    adamw = GroupedAdamW(groups, steps=10, clip=1e9)
    a.grad, b.grad = torch.tensor([3.0]), torch.tensor([4.0])
    assert adamw.step(0) == 5 and a.grad is None
    torch.testing.assert_close(
        (a, b), (torch.tensor([0.9]), torch.tensor([1 - 0.1 - 0.2]))
    )  # AdamW's first step: rate * sign
    assert adamw.rates(0) == {"a": 0.1, "b": 0.2}
    assert [group["betas"] for group in adamw.adamw.param_groups] == [(0.9, 0.95)] * 2


def test_all_groups_are_clipped_together():
    a, b = nn.Parameter(torch.zeros(1)), nn.Parameter(torch.zeros(1))
    settings = Optimiser(rate=0.0, warmup=0)
    adamw = GroupedAdamW({"a": ([a], settings), "b": ([b], settings)}, steps=1, clip=1.0)
    a.grad, b.grad = torch.tensor([3.0]), torch.tensor([4.0])
    assert adamw.step(0) == 5
    moments = torch.cat([adamw.adamw.state[p]["exp_avg"] for p in (a, b)])
    torch.testing.assert_close(moments, 0.1 * torch.tensor([0.6, 0.8]))


def test_moving_average():
    parameter = nn.Parameter(torch.tensor([1.0]))
    average = MovingAverage({"p": parameter}, 0.75)
    parameter.data.fill_(3.0)
    average.update()
    torch.testing.assert_close(average.average["p"], torch.tensor([1.5]))
    assert not average.average["p"].requires_grad


def test_the_weight_follows_its_schedule():
    alignment = Alignment(weight=2.0, schedule=((10, 0.0), (20, 1.0), (40, 0.5)))
    assert [alignment_weight(alignment, step) for step in (0, 10, 15, 20, 30, 40, 100)] == [0, 0, 1, 2, 1.5, 1, 1]
    assert alignment_weight(Alignment(weight=2.0), 7) == 2.0
    assert alignment_weight(Alignment(loss="none"), 7) == 0.0


def test_the_watch_sees_the_alignment_forward_and_backward():
    events = []

    class Listening(Watch):
        def begin(self):
            events.append("begin")

        def end(self):
            events.append("end")

    def noted(projected, _):
        events.append("forward")
        projected.register_hook(lambda _: events.append("gradient"))
        return projected.square().mean()

    model = Linear()
    task = AlignedDiffusion(model, noted, watch=Listening())
    list(training_steps(task, [[batch()]], optimiser(model), range(1), weight=lambda _: 1.0))
    assert events == ["begin", "forward", "end", "begin", "gradient", "end"]
