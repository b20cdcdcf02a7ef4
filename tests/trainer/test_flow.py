"""Optical flow, tracks and VideoMAE as teachers, on motion that is known."""

import io

import numpy as np
import pytest
import torch

pytest.importorskip("diffusers")
pytest.importorskip("transformers")

from lgf_trainer.data.flow import NeighbourFlow, Source, chained, read_flow, resized, sampled
from lgf_trainer.data.report import Skipped
from lgf_trainer.data.sources import list_clips
from lgf_trainer.data.video import Fit
from lgf_trainer.runtime.errors import TrainerError
from lgf_trainer.teachers.base import Student
from lgf_trainer.teachers.raft import Flow, FlowOptions, Raft, tubelet_pairs
from lgf_trainer.teachers.tracks import Tracks, _cell_of, tracks_from_flow
from safetensors.torch import save, save_file

CPU = torch.device("cpu")


def grid_of(height, width):
    return torch.stack(torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij"), -1).float()


def constant(u, v, pairs=4, size=(24, 32)):
    """Flow (pairs, 2, H, W) of a picture that moves by u to the right and v downwards."""
    return torch.tensor([u, v], dtype=torch.float32).view(1, 2, 1, 1).expand(pairs, 2, *size).clone()


def affine(matrix, shift, size):
    """Flow (2, H, W) of the map p -> matrix p + shift of points p = (x, y)."""
    points = grid_of(*size).flip(-1)
    return (points @ matrix.T + shift - points).permute(2, 0, 1)


def test_sampling_between_pixels_and_outside():
    field = torch.arange(12.0).view(1, 3, 4).repeat(2, 1, 1)
    field[1] *= 10
    points = torch.tensor([[1.0, 2.0], [0.5, 1.0], [2.0, 2.75], [9.0, -5.0]])
    expected = torch.tensor([[60.0, 6.0], [30.0, 3.0], [107.5, 10.75], [80.0, 8.0]])  # v, u
    torch.testing.assert_close(sampled(field, points), expected)


def test_resized_flow_keeps_what_it_says():
    """A picture that moves a tenth of its width still does."""
    both = resized(constant(3.2, -2.4, 1), (48, 32))
    torch.testing.assert_close(both, constant(3.2, -4.8, 1, (48, 32)))


def test_chained_affine_flow_is_the_affine_map_of_both():
    size = (40, 50)
    one, other = torch.tensor([[1.01, 0.02], [-0.01, 0.99]]), torch.tensor([[0.98, -0.01], [0.02, 1.02]])
    shift, second_shift = torch.tensor([0.7, -0.4]), torch.tensor([-0.3, 0.9])
    both = chained(affine(one, shift, size), affine(other, second_shift, size))
    expected = affine(other @ one, other @ shift + second_shift, size)
    torch.testing.assert_close(both[:, 3:-3, 3:-3], expected[:, 3:-3, 3:-3], atol=1e-4, rtol=0)


@pytest.mark.parametrize("points", [5, 64, 1000])
def test_tracks_of_constant_flow_are_straight_until_the_border(points):
    u, v = 2.5, -1.25
    tracks, visible = tracks_from_flow(NeighbourFlow(constant(u, v, 8), constant(-u, -v, 8)), points)
    assert tracks.shape == (points, 9, 2) and visible.shape == (points, 9)
    step = torch.tensor([v, u])
    torch.testing.assert_close(tracks[:, 1:] - tracks[:, :-1], step.expand(points, 8, 2), atol=2e-5, rtol=0)
    inside = ((tracks >= 0) & (tracks <= torch.tensor([23, 31]))).all(-1)
    assert torch.equal(visible, inside)
    assert visible.any(-1).all() and not visible.all()


def test_tracks_follow_affine_flow():
    size, pairs = (60, 80), 6
    matrix, shift = torch.tensor([[1.02, 0.03], [-0.03, 1.01]]), torch.tensor([0.5, 0.25])
    inverse = torch.linalg.inv(matrix)
    forward = affine(matrix, shift, size).expand(pairs, 2, *size)
    backward = affine(inverse, -inverse @ shift, size).expand(pairs, 2, *size)
    tracks, visible = tracks_from_flow(NeighbourFlow(forward, backward), 50)
    begins = visible[:, 0]
    place = tracks[begins, 0].flip(-1)
    for t in range(1, pairs + 1):
        place = place @ matrix.T + shift
        seen = visible[begins, t]
        torch.testing.assert_close(tracks[begins, t][seen].flip(-1), place[seen], atol=1e-3, rtol=0)
    assert visible[begins, -1].any()


def test_a_flow_back_that_leads_elsewhere_ends_tracks_for_good():
    forward, backward = constant(1.5, 0, 4), constant(-1.5, 0, 4)
    backward[1] = 0  # 1.5 pixels from where they came
    _, visible = tracks_from_flow(NeighbourFlow(forward, backward), 40)
    begin = (visible[:, 0] & visible[:, 1]).nonzero()[:, 0]
    assert len(begin) and not visible[begin, 2:].any()
    late = ~visible[:, 0] & visible[:, 3]
    assert late.any() and not visible[late][:, :2].any()
    _, visible = tracks_from_flow(NeighbourFlow(forward, backward), 40, threshold=1.6)
    assert visible[:, 2].any()


def test_places_that_no_track_covers_get_tracks_of_their_own():
    """A picture that leaves to the left uncovers its right side."""
    flow = NeighbourFlow(constant(-3, 0, 8), constant(3, 0, 8))
    tracks, visible = tracks_from_flow(flow, 200)
    right = tracks[..., 1] > 24
    assert not (right & visible)[:150, 4:].any()  # those of the first frame have left
    assert (right & visible)[150:, 4:].any(0).all()
    cells, size = (
        torch.tensor([11, 13]),
        torch.tensor([24.0, 32.0]),
    )  # 143 tracks on the grid, then 19 in each of three frames
    for start, begin in ((2, 143), (4, 162), (6, 181)):
        numbers = _cell_of(tracks[:, start], cells, size)
        covered = set(numbers[:begin][visible[:begin, start]].tolist())
        assert visible[begin : begin + 19, start].all() and covered.isdisjoint(numbers[begin : begin + 19].tolist())


def test_pairs_of_tubelets():
    """On a video whose frame k is filled with k."""
    counter = torch.arange(49)
    for pairs, first, second in (
        ("first", range(1, 47, 2), range(3, 49, 2)),
        ("boundary", range(2, 48, 2), range(3, 49, 2)),
    ):
        one, other = tubelet_pairs(49, pairs)
        assert counter[one].tolist() == list(first) and counter[other].tolist() == list(second)
        assert len(one) == 23


def video_beside(tmp_path, array, suffix=".flow.npy"):
    """A source whose video has flow beside it."""
    (tmp_path / "dog.mp4").write_bytes(b"")
    content = io.BytesIO()
    if suffix.endswith(".npy"):
        np.save(content, array)
    else:
        content.write(save(array))
    (tmp_path / f"dog{suffix}").write_bytes(content.getvalue())
    [clip] = list_clips([tmp_path])
    return Source(clip, 0, Fit.cover((24, 40), (48, 64)))


def test_flow_beside_the_video_is_cut_as_the_picture_is(tmp_path):
    """24 x 40 pixels become 48 x 80, of which the middle 64 columns are seen; the flow was made at 12 x 20."""
    ramp = torch.zeros(6, 2, 12, 20)
    ramp[:, 0] = torch.arange(20.0)
    source = video_beside(tmp_path, ramp.numpy())
    found = read_flow(source._replace(start=2), 5, ".flow.npy", backward=False)
    assert found.forward.shape == (4, 2, 48, 64) and found.backward is None
    assert found.forward[0, 0, 0, 30] == pytest.approx(4 * ((30 + 8 + 0.5) / 4 - 0.5)) and not found.forward[:, 1].any()
    with pytest.raises(Skipped, match="6 pairs of frames, and 7 are needed"):
        read_flow(source._replace(start=3), 5, ".flow.npy", backward=False)


def test_teachers_on_flow_beside_the_video(tmp_path):
    forward, backward = constant(1, 0.5, 8, (24, 40)), constant(-1, -0.5, 8, (24, 40))
    source = video_beside(tmp_path, {"forward": forward, "backward": backward}, ".flow.safetensors")
    student = Student(range(9), (3, 4), source)
    video = torch.zeros(9, 3, 48, 64)
    teacher = Flow(Flow.Options(files=".flow.safetensors", size=(128, 192)), CPU)
    flow = teacher(video, None, student)["flow"]
    assert flow.shape == (3, 2, 128, 192) and flow.dtype == torch.float16
    torch.testing.assert_close(
        flow.float(), constant(2 * 2 * 192 / 64, 2 * 128 / 48, 3, (128, 192)), rtol=1e-3, atol=1e-3
    )
    boundary = Flow(Flow.Options(files=".flow.safetensors", pairs="boundary"), CPU)(video, None, student)["flow"]
    torch.testing.assert_close(boundary.float(), flow.float() / 2, rtol=1e-3, atol=1e-3)
    found = Tracks(Tracks.Options(files=".flow.safetensors", points=10), CPU)(video, None, student)
    assert found["tracks"].shape == (10, 9, 2) and found["tracks"].dtype == torch.float32
    assert found["tracks_visible"].dtype == torch.uint8
    torch.testing.assert_close(found["tracks"][:, 1] - found["tracks"][:, 0], torch.tensor([1.0, 2.0]).expand(10, 2))


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (torch.zeros(5, 3, 4, 4).numpy(), "flow is"),
        (np.array([{}], dtype=object), "cannot be read"),  # a pickle, which is not loaded
    ],
)
def test_files_that_hold_no_flow(tmp_path, array, message):
    with pytest.raises(Skipped, match=message):
        read_flow(video_beside(tmp_path, array), 5, ".flow.npy", backward=False)


def test_tracks_need_the_flow_back(tmp_path):
    source = video_beside(tmp_path, constant(1, 0, 8).numpy())
    with pytest.raises(Skipped, match="no flow back"):
        Tracks(Tracks.Options(files=".flow.npy"), CPU)(
            torch.zeros(9, 3, 48, 64), None, Student(range(9), (3, 4), source)
        )


def test_both_directions_in_one_array(tmp_path):
    source = video_beside(tmp_path, torch.stack([constant(1, 0, 8), constant(-1, 0, 8)]).numpy())
    found = read_flow(source, 9, ".flow.npy", backward=True)
    assert torch.equal(found.backward, -found.forward) and found.forward.any()


@pytest.fixture(scope="module")
def raft_file(tmp_path_factory):
    optical_flow = pytest.importorskip("torchvision.models.optical_flow")
    torch.manual_seed(0)
    file = tmp_path_factory.mktemp("raft") / "raft.safetensors"
    save_file(optical_flow.raft_small().state_dict(), file)
    return str(file)


def test_raft_is_torchvisions(raft_file):
    from torchvision.models.optical_flow import raft_small

    raft = Raft(FlowOptions("small", raft_file, updates=2), CPU)
    frames = torch.rand(3, 3, 128, 136) * 2 - 1
    torch.manual_seed(0)
    with torch.no_grad():
        expected = raft_small().eval()(frames[:-1], frames[1:], num_flow_updates=2)[-1]
    torch.testing.assert_close(raft(frames[:-1], frames[1:]), expected, rtol=1e-3, atol=1e-3)
    with pytest.raises(TrainerError, match=r"multiples of 8, got 120 x 136\. Give another size .*--height"):
        raft(frames[:1, :, :120], frames[1:2, :, :120])


def test_the_flow_teacher_runs_raft_at_its_size(raft_file):
    options = Flow.Options(network="small", weights=raft_file, updates=1, size=(128, 136))
    flow = Flow(options, CPU)(torch.rand(5, 3, 48, 64) * 2 - 1, None, Student(range(5), (3, 4)))["flow"]
    assert flow.shape == (1, 2, 128, 136)


@pytest.mark.parametrize("weights", ["C_T_SKHT_V9", "raft_large-file", "text.pth"])
def test_weights_that_raft_cannot_have(weights, raft_file, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.pth").write_text("no weights\n")
    weights = raft_file if weights.endswith("file") else weights
    with pytest.raises(TrainerError, match=r"of RAFT cannot be loaded.*C_T_SKHT_V2"):
        Raft(FlowOptions("large", weights), CPU)


def test_without_torchvision_the_way_out_is_said(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "torchvision.models", None)
    with pytest.raises(TrainerError, match=r"lgf-kernels\[flow\].*files"):
        Raft(FlowOptions(), CPU)
