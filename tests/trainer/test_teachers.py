"""SAM2's memory features: against the models' own functions, in both directions, and in both packages."""

import re
import sys

import pytest
import torch

pytest.importorskip("diffusers")
pytest.importorskip("transformers")

from lgf_trainer.runtime.errors import TrainerError
from lgf_trainer.teachers.base import DEVIATION, MEAN, LostSubject, to_grid
from lgf_trainer.teachers.sam2 import PackageSam2, Track, Tracker, TransformersSam2
from lgf_trainer.testing import TEACHER_CHANNELS, TEACHER_SIZE, make_tiny_teacher
from torch.nn.functional import cosine_similarity, interpolate
from transformers import Sam2VideoInferenceSession

FRAMES, HEIGHT, WIDTH = 9, 64, 96
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return str(make_tiny_teacher(tmp_path_factory.mktemp("sam2")))


@pytest.fixture(scope="module")
def teacher(folder):
    return TransformersSam2(folder, CPU)


@pytest.fixture
def fresh(folder):
    """A teacher for a test that changes it."""
    return TransformersSam2(folder, CPU)


@pytest.fixture
def video():
    coarse = torch.randn(FRAMES, 3, 8, 12)
    return interpolate(coarse, size=(HEIGHT, WIDTH), mode="bilinear").clamp(-1, 1)


@pytest.fixture
def mask():
    inside = torch.zeros(HEIGHT, WIDTH, dtype=torch.bool)
    inside[10:50, 20:60] = True
    return inside


def prepared(video):
    """The frames as SAM2 is fed them, in float64 and in one piece."""
    pixels = interpolate(video.double(), (TEACHER_SIZE, TEACHER_SIZE), mode="bilinear", antialias=True)
    mean, deviation = (torch.tensor(v, dtype=torch.float64).view(3, 1, 1) for v in (MEAN, DEVIATION))
    return (((pixels + 1) / 2 - mean) / deviation).float()


def followed_by_transformers(model, video, mask, frame, reverse):
    """Features and masks from the model's own propagation through a session that knows nothing of ours."""
    seen = {}
    name = "_prepare_memory_conditioned_features"
    assert hasattr(model, name), f"transformers has moved {name}: see what its memory features are called now"
    original = getattr(model, name)

    def spy(*args, **kwargs):
        seen[kwargs["frame_idx"]] = original(*args, **kwargs)
        return seen[kwargs["frame_idx"]]

    session = Sam2VideoInferenceSession(
        video=prepared(video), video_height=TEACHER_SIZE, video_width=TEACHER_SIZE, dtype=torch.float32
    )
    subject = session.obj_id_to_idx(1)
    session.add_mask_inputs(subject, frame, mask[None, None].float())
    session.obj_with_new_inputs = [1]
    setattr(model, name, spy)
    try:
        outputs = list(model.propagate_in_video_iterator(session, start_frame_idx=frame, reverse=reverse))
    finally:
        delattr(model, name)
    masks = {output.frame_idx: output.pred_masks[0, 0] for output in outputs}
    return {k: v[0].permute(1, 2, 0) for k, v in seen.items()}, masks


def test_features_are_those_of_the_models_own_propagation(teacher, video, mask):
    forward, backward = teacher.track(video, mask)
    assert forward.features.shape == (FRAMES, 8, 8, TEACHER_CHANNELS) and forward.features.dtype == torch.float32
    square = interpolate(mask[None, None].float(), (TEACHER_SIZE,) * 2, mode="bilinear", antialias=True)[0, 0] >= 0.5
    last = interpolate(forward.masks[-1][None, None], (TEACHER_SIZE,) * 2, mode="bilinear")[0, 0] > 0
    for track, prompt, frame in ((forward, square, 0), (backward, last, FRAMES - 1)):
        features, masks = followed_by_transformers(teacher.model, video, prompt, frame, reverse=frame > 0)
        assert sorted([*features, frame]) == list(range(FRAMES)), "a mask-prompted frame has no memory features"
        for index, expected in features.items():
            torch.testing.assert_close(track.features[index], expected, rtol=1e-4, atol=1e-5)
        for index, expected in masks.items():
            torch.testing.assert_close(track.masks[index], expected, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(forward.features[4], backward.features[4], atol=1e-3)


def test_the_prompted_frame_has_the_feature_of_no_memory(teacher, video, mask):
    forward, backward = teacher.track(video, mask)
    for track, frame in ((forward, 0), (backward, FRAMES - 1)):
        expected = teacher.model.get_image_embeddings(prepared(video[frame : frame + 1]))[-1][0].permute(1, 2, 0)
        torch.testing.assert_close(track.features[frame], expected, rtol=1e-4, atol=1e-5)
    plain = teacher.model.get_image_features(prepared(video[:1]), return_dict=True).fpn_hidden_states[-1][:, 0]
    assert not torch.allclose(forward.features[0].flatten(0, 1), plain, atol=1e-3)


def test_backward_is_forward_in_the_reversed_video(teacher, video, mask):
    forward, backward = teacher.track(video, mask)
    last = interpolate(forward.masks[-1][None, None], (TEACHER_SIZE,) * 2, mode="bilinear")[0, 0] > 0
    reversed_forward, _ = teacher.track(video.flip(0), last)
    assert torch.equal(reversed_forward.features.flip(0), backward.features)
    assert torch.equal(reversed_forward.masks.flip(0), backward.masks)


def test_memory_goes_one_way(teacher, video, mask):
    """A changed frame changes the forward track from there on, and the backward track up to there."""
    before = teacher.track(video, mask)
    video[4] = -video[4]
    after = teacher.track(video, mask)
    changed = [(a.features != b.features).flatten(1).any(1).tolist() for a, b in zip(before, after, strict=True)]
    assert changed[0] == [False] * 4 + [True] * 5
    assert changed[1][:5] == [True] * 5


def test_a_box_prompts_with_the_mask_that_sam2_draws(teacher, video, monkeypatch):
    box, seen = torch.tensor([24.0, 8.0, 72.0, 56.0]), []
    original = Sam2VideoInferenceSession.add_point_inputs
    monkeypatch.setattr(
        Sam2VideoInferenceSession,
        "add_point_inputs",
        lambda self, *args: (seen.append(args), original(self, *args))[1],
    )
    by_box = teacher.track(video, box)
    ((_, frame, points),) = seen
    assert frame == 0 and points["point_labels"].tolist() == [[[2, 3]]]
    scale = torch.tensor([TEACHER_SIZE / WIDTH, TEACHER_SIZE / HEIGHT])
    torch.testing.assert_close(points["point_coords"], (box.view(2, 2) * scale)[None, None])
    teacher._watch(video)
    drawn = teacher._mask_of_box(box, (HEIGHT, WIDTH))
    assert 0 < drawn.float().mean() < 1
    for a, b in zip(by_box, teacher.track(video, drawn), strict=True):
        assert torch.equal(a.features, b.features)


@pytest.mark.parametrize("prompt", ["box", "mask"])
def test_each_frame_is_encoded_once_and_positions_are_kept_once(fresh, video, mask, prompt):
    calls = []
    fresh.model.vision_encoder.register_forward_hook(lambda *_: calls.append(1))
    fresh.track(video, mask if prompt == "mask" else torch.tensor([24.0, 8.0, 72.0, 56.0]))
    assert len(calls) == FRAMES
    kept = [fresh.session.cache.get_vision_features(i)["vision_pos_embeds"][0].data_ptr() for i in range(FRAMES)]
    assert len(set(kept)) == 1


def test_results_do_not_depend_on_what_was_tracked_before(teacher, video, mask):
    first = teacher.track(video, mask)
    teacher.track(video.flip(3)[:5], mask.flip(1))
    for a, b in zip(first, teacher.track(video, mask), strict=True):
        assert torch.equal(a.features, b.features) and torch.equal(a.masks, b.masks)


def test_features_hold_no_graph_and_can_be_differentiated_against(teacher, video, mask):
    forward, _ = teacher.track(video, mask)
    assert not forward.features.requires_grad and not forward.features.is_inference()


def test_weights_are_float32_whatever_they_were_stored_in(folder, tmp_path, video, mask):
    TransformersSam2(folder, CPU).model.to(torch.bfloat16).save_pretrained(tmp_path)
    teacher = TransformersSam2(str(tmp_path), CPU)
    assert {p.dtype for p in teacher.model.parameters()} == {torch.float32}
    assert not any(p.requires_grad for p in teacher.model.parameters()) and not teacher.model.training


def test_an_empty_prompt(teacher, video):
    with pytest.raises(LostSubject, match="first frame"):
        teacher.track(video, torch.zeros(HEIGHT, WIDTH, dtype=torch.bool))


def test_a_subject_that_is_lost(fresh, video, mask):
    torch.nn.init.constant_(fresh.model.mask_decoder.pred_obj_score_head.proj_out.bias, -100)
    with pytest.raises(LostSubject, match="empty in the last frame"):
        fresh.track(video, mask)


def test_a_version_whose_memory_attention_is_elsewhere_is_refused(fresh, video, mask):
    fresh._step = lambda frame, prompt, reverse: torch.ones(32, 32)
    with pytest.raises(RuntimeError, match="ran 0 times in 9 frames"):
        fresh.track(video, mask)
    assert not fresh.model.memory_attention._forward_hooks, "the hook must not stay"


@pytest.mark.parametrize("prompt", ["box", "mask"])
def test_the_sam2_package_gives_the_same_features(teacher, video, mask, prompt):
    pytest.importorskip("sam2", reason='pip install "lgf-kernels[sam2]"')
    from support.sam2_twin import make_twin

    other = package_teacher(make_twin(teacher.model.state_dict()))
    given = mask if prompt == "mask" else torch.tensor([24.0, 8.0, 72.0, 56.0])
    for ours, theirs in zip(teacher.track(video, given), other.track(video, given), strict=True):
        assert cosine_similarity(ours.features, theirs.features, dim=-1).min() > 0.999999
        torch.testing.assert_close(ours.features, theirs.features, rtol=1e-3, atol=1e-5)
        torch.testing.assert_close(ours.masks, theirs.masks, rtol=1e-3, atol=1e-4)
    assert other.model.memory_attention._forward_hooks == {}


def package_teacher(model) -> Tracker:
    import sam2.build_sam

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sam2.build_sam, "build_sam2", lambda config, checkpoint, device: model)
        return PackageSam2("tiny.yaml:tiny.pt", CPU)


def test_the_sam2_package_names_what_it_cannot_load():
    pytest.importorskip("sam2", reason='pip install "lgf-kernels[sam2]"')
    with pytest.raises(TrainerError, match=r"cannot be loaded from nothing\.yaml:nothing\.pt"):
        PackageSam2("nothing.yaml:nothing.pt", CPU)


def test_a_missing_sam2_package_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "sam2", None)
    monkeypatch.setitem(sys.modules, "sam2.build_sam", None)
    with pytest.raises(TrainerError, match=r'pip install "lgf-kernels\[sam2\]"'):
        PackageSam2("facebook/sam2.1-hiera-large", CPU)


def test_missing_weights_are_named(tmp_path):
    with pytest.raises(TrainerError, match=re.escape(f"cannot be loaded from {tmp_path}")):
        TransformersSam2(str(tmp_path), CPU)


def test_grids():
    ramp = torch.arange(8.0)[None, :, None, None].expand(2, 8, 8, 3).clone()
    assert torch.equal(to_grid(ramp, (8, 8)), ramp)
    wide = to_grid(ramp, (16, 24))
    assert wide.shape == (2, 16, 24, 3) and wide.is_contiguous()
    torch.testing.assert_close(wide[0, 1:-1, 0, 0], torch.arange(0.25, 7, 0.5))
    checkers = (torch.arange(8)[:, None] + torch.arange(8)).remainder(2).float()[None, :, :, None]
    assert (to_grid(checkers, (4, 4))[:, 1:-1, 1:-1] - 0.5).abs().max() < 1e-6, (
        "without antialiasing it would be 0 or 1"
    )


def test_a_track_is_in_the_order_of_the_video(teacher, video, mask):
    """Still frames but one: its mask must stand at its own place, in both tracks."""
    still = video[:1].expand(FRAMES, -1, -1, -1).clone()
    still[6] = video[6]
    for track in teacher.track(still, mask):
        assert isinstance(track, Track)
        change = (track.masks[1:-1] - track.masks[1]).flatten(1).norm(dim=1)
        assert change.argmax() == 5
