"""The generator's motion is exact, the oracle knows what it should, and motion is read with the right sign."""

import pytest
import torch
from lgf_demo.clips import TOKEN, grid_points, make_clip
from lgf_demo.oracle import oracle_features
from lgf_trainer.evaluation.motion import end_point_error, expected_motion, motion_of, window_offsets

from lgf_kernels import local_gram_flow, local_window_mask

GRID = FRAMES, HEIGHT, WIDTH = 5, 10, 14
SIZE = (HEIGHT * TOKEN, WIDTH * TOKEN)


@pytest.fixture(scope="module")
def clips():
    return [make_clip(seed, *GRID) for seed in range(4)]


def test_a_clip_is_a_function_of_its_seed(clips):
    assert torch.equal(make_clip(0, *GRID).video, clips[0].video)
    assert not torch.equal(clips[0].video, clips[1].video)
    assert clips[0].video.shape == (FRAMES, 3, *SIZE) and clips[0].video.abs().max() <= 1


def test_a_visible_surface_point_keeps_its_texture(clips):
    centres = grid_points(HEIGHT, WIDTH) * TOKEN
    for clip in clips:
        for t in range(FRAMES - 1):
            seen = clip.visible[t].flatten()
            there = centres + clip.motion[t].flatten(0, 1) * TOKEN
            now, later = clip.scene.surface(t, centres[seen]), clip.scene.surface(t + 1, there[seen])
            assert torch.equal(now[0], later[0])
            torch.testing.assert_close(clip.scene.paint(*now), clip.scene.paint(*later), rtol=0, atol=1e-3)


def test_pixels_follow_the_motion(clips):
    """The nearest pixels of frame t+1 look like the token centres of frame t: the images, not only the scene, agree."""
    errors, still = [], []
    for clip in clips:
        for t in range(FRAMES - 1):
            centres = grid_points(HEIGHT, WIDTH)[clip.moving[t].flatten()] * TOKEN
            there = centres + clip.motion[t][clip.moving[t]] * TOKEN
            colour = clip.scene.paint(*clip.scene.surface(t, centres))

            def at(points, t=t, clip=clip):
                y, x = points.floor().long().T
                return clip.video[t + 1][:, y.clamp(0, SIZE[0] - 1), x.clamp(0, SIZE[1] - 1)].T

            errors.append((at(there) - colour).abs().mean())
            still.append((at(centres) - colour).abs().mean())
    assert torch.stack(errors).mean() < 0.2 * torch.stack(still).mean()


def test_what_is_hidden_is_marked():
    clip = make_clip(0, *GRID)
    hidden = ~clip.visible
    there = grid_points(HEIGHT, WIDTH) * TOKEN + clip.motion[0].flatten(0, 1) * TOKEN
    part = clip.scene.surface(0, grid_points(HEIGHT, WIDTH) * TOKEN)[0]
    covered = clip.scene.surface(1, there)[0] != part
    outside = ((there < 0) | (there >= torch.tensor(SIZE))).any(1)
    assert torch.equal(hidden[0].flatten(), covered | outside)
    assert covered.any() and (covered.float().mean() < 0.3)


def test_motion_fits_the_window():
    motion = [make_clip(seed, *GRID) for seed in range(12)]
    assert max(clip.motion.abs().max().item() for clip in motion) <= 3


def test_many_tokens_move(clips):
    assert all(0.1 < clip.moving.float().mean() < 0.6 for clip in clips)


def test_the_oracle_shows_the_true_motion(clips):
    for clip in clips:
        fused = sum(local_gram_flow(f[None]) for f in oracle_features(clip)) / 2
        error = end_point_error(expected_motion(fused)[0], clip.motion, clip.moving)
        still = end_point_error(torch.zeros_like(clip.motion), clip.motion, clip.moving)
        assert error < 0.4 * still


def test_forward_and_backward_differ_where_one_side_fails_and_only_there(clips):
    clip = clips[0]
    forward, backward = oracle_features(clip)
    fine = grid_points(4 * HEIGHT, 4 * WIDTH) * TOKEN / 4

    def remembered(t, other):
        if not 0 <= other < FRAMES:
            return torch.ones(HEIGHT, WIDTH, dtype=torch.bool)
        known = clip.scene.visible(other, *clip.scene.surface(t, fine), SIZE)
        return known.reshape(HEIGHT, 4, WIDTH, 4).all(3).all(1)

    for t in range(FRAMES):
        equal = (forward[t] == backward[t]).all(-1)
        assert torch.equal(equal, remembered(t, t - 1) & remembered(t, t + 1))
    assert not torch.equal(forward, backward)


def test_expected_motion_of_a_certain_token_is_its_offset():
    offsets = window_offsets(7)
    assert offsets[0].tolist() == [-3, -3] and offsets[1].tolist() == [-3, -2] and offsets[24].tolist() == [0, 0]
    logits = torch.zeros(9, 9, 49)
    logits[4, 4, 10] = 10.0
    torch.testing.assert_close(expected_motion(logits)[4, 4], offsets[10])


def test_motion_of_shifted_features_is_the_shift():
    frame = torch.nn.functional.normalize(torch.randn(12, 16, 256), dim=-1)
    features = torch.stack([frame, frame.roll((1, -2), (0, 1))])[None]
    inner = motion_of(features)[0, 0, 3:-3, 3:-3]
    torch.testing.assert_close(inner, torch.tensor([1.0, -2.0]).expand_as(inner), rtol=0, atol=0.05)


def test_positions_outside_the_frame_have_no_probability():
    inside = local_window_mask(5, 6, 7)
    logits = torch.where(inside, 0.0, 100.0)
    assert expected_motion(logits).isfinite().all()
    torch.testing.assert_close(expected_motion(logits)[0, 0], torch.tensor([1.5, 1.5]))


def test_end_point_error_is_a_distance_over_the_chosen_tokens():
    predicted, true = torch.tensor([[3.0, 4.0], [9.0, 9.0]]), torch.zeros(2, 2)
    assert end_point_error(predicted, true, torch.tensor([True, False])) == 5
