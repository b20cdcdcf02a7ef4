"""Point correspondence along cached tracks: units, frames, and the frame that is asked for."""

import pytest
import torch

pytest.importorskip("yaml")

from lgf_trainer.objectives.base import make_objective
from lgf_trainer.objectives.points import drawn_queries
from lgf_trainer.projector import RelationHead, TokenMlp
from lgf_trainer.runtime.errors import TrainerError
from lgf_trainer.runtime.recipe import Alignment
from lgf_trainer.runtime.recipe import Projector as ProjectorOptions
from torch import nn
from torch.nn.functional import interpolate, silu

from lgf_kernels import point_correspondence_loss

SETTINGS = {"grid": [3, 4, 6], "frames": 9, "height": 64, "width": 96}
SHAPES = {"tracks": torch.Size([5, 9, 2]), "tracks_visible": torch.Size([5, 9])}


def objective(**options):
    return make_objective(Alignment(loss="points", options=options), SETTINGS)


def moving_field(frames=3, rows=4, columns=6, channels=64):
    """Features that move by one column to the right in a frame."""
    places = torch.randn(rows, columns + frames, channels)
    return torch.stack([places[:, frames - t : frames - t + columns] for t in range(frames)])[None]


def tracks_of_tokens(shift=16.0):
    """Tracks of pixels in the centres of tokens of 16 pixels, over 9 frames of which every fourth is compared."""
    begin = torch.tensor([[0.0, 0], [1, 1], [2, 2], [3, 3], [3, 0]]) * 16 + 7.5
    return (begin[:, None] + torch.arange(9).view(1, 9, 1) / 4 * torch.tensor([0.0, shift]))[None]


def test_pixels_become_tokens_and_frames_those_of_the_grid():
    """Tracks that follow the features cost nothing; tracks that stand still cost a token and more."""
    visible = torch.ones(1, 5, 9, dtype=torch.uint8)
    follows = objective()(moving_field(), {"tracks": tracks_of_tokens(), "tracks_visible": visible})
    stands = objective()(moving_field(), {"tracks": tracks_of_tokens(0.0), "tracks_visible": visible})
    assert follows < 1e-2 and stands > 0.5


@pytest.mark.parametrize("options", [{}, {"distance": "l1", "window": 2, "temperature": 0.1}])
def test_it_is_the_librarys_loss(options):
    features, tracks = torch.randn(1, 3, 4, 6, 8), tracks_of_tokens()
    visible = torch.rand(1, 5, 9) < 0.7
    torch.manual_seed(3)
    actual = objective(**options)(features, {"tracks": tracks, "tracks_visible": visible.to(torch.uint8)})
    places, seen = ((tracks + 0.5) / 16 - 0.5)[:, :, ::4], visible[:, :, ::4]
    torch.manual_seed(3)
    queries = drawn_queries(places, seen, (4, 6))
    torch.testing.assert_close(actual, point_correspondence_loss(features, queries, places, seen, **options))


def test_nothing_in_sight_costs_nothing():
    features = torch.randn(1, 3, 4, 6, 8, requires_grad=True)
    visible = torch.zeros(1, 5, 9, dtype=torch.uint8)
    visible[:, 0, 0] = 1  # in one frame only
    loss = objective()(features, {"tracks": tracks_of_tokens(), "tracks_visible": visible})
    loss.backward()
    assert loss == 0 and not features.grad.any()


def test_every_visible_frame_is_drawn_alike():
    visible = torch.tensor([[[True, False, True, True], [False, False, False, True]]]).expand(3000, 2, 4)
    places = torch.arange(4.0).view(1, 1, 4, 1).expand(3000, 2, 4, 2)
    torch.manual_seed(0)
    queries = drawn_queries(places, visible, (10, 3))
    counts = queries[:, 0, 0].long().bincount(minlength=4)
    assert counts[1] == 0 and ((counts[[0, 2, 3]] - 1000).abs() < 120).all() and (queries[:, 1, 0] == 3).all()
    assert torch.equal(queries[:, 0, 1], queries[:, 0, 0])  # the row of that frame
    assert torch.equal(queries[:, 0, 2], queries[:, 0, 0].clamp(max=2))  # within the grid
    torch.manual_seed(0)
    assert torch.equal(drawn_queries(places, visible, (10, 3)), queries)


def test_a_cache_without_tracks_names_the_way_out():
    with pytest.raises(TrainerError, match=r"no tracks.*lgf extract --teachers tracks"):
        objective().check({"latents": torch.Size([1])}, (3, 4, 6), "cache")
    objective().check(SHAPES, (3, 4, 6), "cache")
    assert objective().frames(SHAPES) == 3


def test_options_that_no_loss_could_have():
    with pytest.raises(TrainerError, match="temperature"):
        objective(temperature=0.0)
    with pytest.raises(TrainerError, match="distance"):
        objective(distance="l2")


@pytest.mark.parametrize(
    ("layers", "widths", "parameters"),
    [("conv", (256, 64), 1_528_192), ("mlp", (2048, 2048, 768), 9_704_192 + 5_309_184)],
)
def test_heads_have_the_papers_sizes(layers, widths, parameters):
    with torch.device("meta"):
        head = RelationHead(1920, widths, layers)
        assert sum(parameter.numel() for parameter in head.parameters()) == parameters
        assert head(torch.randn(1, 13, 30, 45, 1920)).shape == (1, 24, 10, 15, widths[-1])


def test_the_head_of_moalign_as_its_appendix_says():
    head = RelationHead(6, (5, 4), "conv", 2)
    features = torch.randn(2, 4, 4, 6, 6)
    x = features[:, 1:].permute(0, 4, 1, 2, 3)
    x = silu(head.layers[1](silu(head.layers[0](x))))
    x = interpolate(x, (6, 4, 6), mode="trilinear", align_corners=False)
    frames = torch.stack([head.reduce(x[:, :, t]) for t in range(6)], 1).permute(0, 1, 3, 4, 2)
    torch.testing.assert_close(head(features), frames)
    other = features.clone()
    other[:, 0] = 1e3
    assert torch.equal(head(other), head(features))  # the first latent is left out
    assert isinstance(head.layers[0], nn.Conv3d) and head.layers[0].kernel_size == (3, 1, 1)


def test_the_head_of_videorepa_ends_its_layers_bare():
    head = RelationHead(6, (5, 4), "mlp", 2)
    features = torch.randn(1, 3, 2, 2, 6)
    x = head.layers[1](silu(head.layers[0](features[:, 1:].permute(0, 4, 1, 2, 3))))
    x = interpolate(x, (4, 2, 2), mode="trilinear", align_corners=False)
    torch.testing.assert_close(head(features)[0], head.reduce(x[0].transpose(0, 1)).permute(0, 2, 3, 1))


def test_the_head_of_repa_is_its_public_codes():
    """Linear, SiLU, linear, SiLU, linear of every token alone, at the width of 2048 that REPA has."""
    repa = make_objective(Alignment(loss="repa", features=("dino",)), {})
    tensors = {"features_dino": (3, 2, 2, 7)}
    head = repa.make_projector(ProjectorOptions(form="repa", widths=(5, 4, 9)), 6, tensors)
    assert [type(layer) for layer in head] == [nn.Linear, nn.SiLU, nn.Linear, nn.SiLU, nn.Linear]
    x = torch.randn(1, 3, 2, 2, 6)
    token = head[4](silu(head[2](silu(head[0](x[0, 2, 1, 0])))))
    assert head(x).shape == (1, 3, 2, 2, 7)
    torch.testing.assert_close(head(x)[0, 2, 1, 0], token)
    with torch.device("meta"):
        parameters = sum(p.numel() for p in TokenMlp(1152, (2048, 2048, 768)).parameters())
    assert parameters == 1152 * 2048 + 2048 + 2048 * 2048 + 2048 + 2048 * 768 + 768


def test_the_head_of_repa_puts_out_the_latents_frames():
    repa = make_objective(Alignment(loss="repa", features=("dino",)), {})
    head = ProjectorOptions(form="repa", widths=(8, 4))
    repa.check_head(head, {"features_dino": (13, 30, 45, 1024)}, (13, 30, 45), "cache")
    with pytest.raises(
        TrainerError, match="the 13 frames of the latents, and features_dino of cache has 49: extract with"
    ):
        repa.check_head(head, {"features_dino": (49, 30, 45, 1024)}, (13, 30, 45), "cache")


def test_a_head_that_does_not_fit_says_both_grids():
    relation = make_objective(Alignment(loss="relation", features=("videomae",)), {})
    head = ProjectorOptions(form="moalign", widths=(8, 4))
    relation.check_head(head, {"features_videomae": (24, 10, 15, 768)}, (13, 30, 45), "cache")
    with pytest.raises(
        TrainerError, match=r"2 x \(13 - 1\) = 24 frames of 10 x 15.*features_videomae of cache is 24 x 9 x 15"
    ):
        relation.check_head(head, {"features_videomae": (24, 9, 15, 768)}, (13, 30, 45), "cache")
    made = relation.make_projector(head, 16, {"features_videomae": (24, 10, 15, 768)})
    assert isinstance(made, RelationHead) and made.activate_last
