"""Panels of token relations within a budget: every block once, and one projection of the gradient, after its last panel."""

import pytest
import torch

from lgf_kernels.token_relation import panels

TILES = 5


class Pairs:
    tile, tiles = 2, TILES


@pytest.mark.parametrize("budget", [*range(1, 16), 30, 100])
def test_the_gradient_is_projected_when_the_last_panel_is_in(budget, monkeypatch):
    monkeypatch.setattr(panels, "scratch_bytes", lambda: budget * Pairs.tile**2 * 4)
    done, projected = [], []

    def products(pairs, panel, coefficients, out):
        assert panel.blocks(TILES) * len(out[panel.videos]) <= len(coefficients) <= max(budget, TILES)
        done.append(panel)
        return out[None]

    kernels = panels.Kernels(lambda *_: None, products, lambda *_: projected.append(len(done)))
    panels.run(kernels, Pairs(), torch.float32, torch.zeros(3, 15), torch.zeros(3, 10, 4))
    for video in range(3):
        of_video = [panel for panel in done if panel.videos.start <= video < panel.videos.stop]
        assert [row for panel in of_video for row in range(panel.first, panel.end)] == list(range(TILES))
    assert projected == [count for count, panel in enumerate(done, 1) if panel.end == TILES]
