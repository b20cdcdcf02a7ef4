"""SAM2 as a teacher: memory features of a tracked subject, forward and backward in time, and their Local Gram Flow.

`F_mem` of a frame is what SAM2's memory attention puts out: the frame's features after attention to the memories of
the frames before. The prompted frame has no memories; there SAM2's own feature of "no memory yet" stands in, the frame's
features plus a learned vector (our reading of the paper). Both tracks are prompted by a mask: the first frame's, which
SAM2 draws from a box if that is what is given, and for the backward track the last mask of the forward one.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from lgf_kernels import local_gram_flow

from ..runtime.errors import TrainerError, explained
from ..runtime.hub import frozen, pretrained
from ..runtime.recipe import Side
from .base import LostSubject, Teacher, normalised, to_grid

BOX_CORNERS = (2, 3)  # SAM2's labels of the two points that stand for a box


@dataclass(frozen=True)
class Options:
    """Options of SAM2 and of what is stored of it."""

    implementation: Literal["transformers", "sam2"] = "transformers"
    model: str = "facebook/sam2.1-hiera-large"
    window: Side = 7
    similarity: Literal["cosine", "dot"] = "cosine"
    boundary: Literal["exclude", "zero"] = "exclude"
    save_features: bool = False
    save_masks: bool = False


class Sam2(Teacher):
    """Local Gram Flow of SAM2's memory features on the student's tokens, in both directions of time.

    In the cache: `teacher_forward`, `teacher_backward`, and if they are asked for `features_sam2_forward`,
    `features_sam2_backward` and `masks`.
    """

    name = "sam2"
    Options = Options
    needs_subject = True

    def __init__(self, options, device):
        self.options, self.tracker = options, TRACKERS[options.implementation](options.model, device)

    def __call__(self, video, subject, student):
        options, tensors = self.options, {}
        forward, backward = self.tracker.track(video, subject)
        for direction, track in (("forward", forward), ("backward", backward)):
            features = to_grid(track.features[list(student.frames)], student.grid)
            flow = local_gram_flow(
                features[None], window=options.window, similarity=options.similarity, boundary=options.boundary
            )
            tensors[f"teacher_{direction}"] = flow[0].half()
            if options.save_features:
                tensors[f"features_sam2_{direction}"] = features.half()
        if options.save_masks:
            inside = (forward.masks > 0).float()[..., None]
            tensors["masks"] = to_grid(inside, student.grid)[..., 0].half()
        return tensors


class Track(NamedTuple):
    """One subject followed through N frames, in the order of the video whichever way it was followed."""

    features: Tensor  # (N, h, w, C) memory features, h = w = size / 16
    masks: Tensor  # (N, size / 4, size / 4) logits: above 0 where the subject is


class Tracker(ABC):
    """A tracker of one subject, with frozen weights in float32.

    An implementation encodes the frames of a video and takes one tracking step at a time; the rest is here.
    """

    model: nn.Module
    size: int  # pixels: the side of the square that every frame is resized to

    @torch.no_grad()
    def track(self, video: Tensor, prompt: Tensor) -> tuple[Track, Track]:
        """Follow a subject from the first frame to the last, and back.

        Args:
            video: (N, 3, H, W) in [-1, 1], N >= 2.
            prompt: where the subject is in the first frame: a box (4,) of x0, y0, x1, y1 in pixels of the video, or a
                mask (H, W) of bool.

        Returns:
            The forward and the backward track.

        Raises:
            LostSubject: the mask of the first or the last frame is empty.
        """
        self._watch(video)
        mask = self._mask_of_box(prompt, video.shape[-2:]) if prompt.shape == (4,) else self._square(prompt)
        if not mask.any():
            raise LostSubject("nothing is found where the subject should be in the first frame")
        forward = self._follow(mask, range(len(video)))
        last = self._enlarge(forward.masks[-1])
        if not last.any():
            raise LostSubject("the subject is lost: its mask is empty in the last frame")
        backward = self._follow(last, range(len(video) - 1, -1, -1))
        return forward, Track(backward.features.flip(0), backward.masks.flip(0))

    def _follow(self, mask: Tensor, order: range) -> Track:
        """Prompt the first frame of `order` with a mask (size, size) of bool and go on from there, in that order."""
        self._forget()
        with self._memory_features() as features:
            masks = [self._step(frame, mask if frame == order[0] else None, order.step < 0) for frame in order]
        if len(features) != len(order) - 1:
            raise RuntimeError(
                f"SAM2's memory attention ran {len(features)} times in {len(order)} frames, and once in every frame but "
                f"the prompted one was expected: lgf_trainer does not know this version of {type(self.model).__module__}"
            )
        tokens = torch.stack([self._without_memory(order[0]), *features])
        side = round(tokens.shape[1] ** 0.5)
        return Track(tokens.unflatten(1, (side, side)), torch.stack(masks))

    @contextmanager
    def _memory_features(self) -> Iterator[list[Tensor]]:
        """Collect what the memory attention puts out, (tokens, channels), each time it runs."""
        outputs: list[Tensor] = []
        # One package puts out (tokens, 1, C), the other (1, tokens, C) with more ones: the same numbers in the same order.
        handle = self.model.memory_attention.register_forward_hook(
            lambda _module, _inputs, output: outputs.append(output.reshape(-1, output.shape[-1]))
        )
        try:
            yield outputs
        finally:
            handle.remove()

    def _mask_of_box(self, box: Tensor, size: tuple[int, int]) -> Tensor:
        """Return the mask (size, size) of bool that SAM2 draws for a box in the first frame."""
        self._forget()
        scale = torch.tensor([self.size / size[1], self.size / size[0]], device=self.device)
        return self._enlarge(self._step(0, box.to(scale).view(2, 2) * scale, reverse=False))

    def _enlarge(self, logits: Tensor) -> Tensor:
        return interpolate(logits[None, None].float(), (self.size, self.size), mode="bilinear")[0, 0] > 0

    def _square(self, mask: Tensor) -> Tensor:
        mask = mask.to(self.device, torch.float32)[None, None]
        return interpolate(mask, (self.size, self.size), mode="bilinear", antialias=True)[0, 0] >= 0.5

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    @abstractmethod
    def _watch(self, video: Tensor) -> None:
        """Encode the frames of a video, each once; those of another are dropped."""

    @abstractmethod
    def _forget(self) -> None:
        """Drop prompts and memories, and keep the encoded frames."""

    @abstractmethod
    def _step(self, frame: int, prompt: Tensor | None, reverse: bool) -> Tensor:
        """Return the mask's logits in a frame: prompted by a mask (size, size) or corners (2, 2), or tracked from memories."""

    @abstractmethod
    def _without_memory(self, frame: int) -> Tensor:
        """Return (tokens, channels) features of a frame that has no memories to look at."""


class TransformersSam2(Tracker):
    """transformers' Sam2VideoModel.

    Args:
        model: a name on the Hugging Face hub, such as facebook/sam2.1-hiera-large, or a folder.
        device: where to compute.
    """

    def __init__(self, model: str, device: torch.device):
        from transformers import Sam2VideoModel

        self.model = frozen(pretrained(Sam2VideoModel, model, ("sam2_video",), dtype=torch.float32), device)
        self.size = self.model.config.image_size

    def _watch(self, video: Tensor) -> None:
        from transformers import Sam2VideoInferenceSession

        # The frames are encoded here, so the session needs to know only how many there are. All of them share one set of
        # positions, which the session would keep once per frame: five times the memory of the features themselves.
        self.session = Sam2VideoInferenceSession(
            video=torch.zeros(1).expand(len(video)),
            video_height=self.size,
            video_width=self.size,
            inference_device=self.device,
            inference_state_device=self.device,
            dtype=torch.float32,
            max_vision_features_cache_size=len(video),
        )
        positions = None
        for index, frame in enumerate(normalised(video, (self.size, self.size), self.device)):
            encoded = self.model.get_image_features(frame, return_dict=True)
            positions = encoded.fpn_position_encoding if positions is None else positions
            features = {"vision_feats": encoded.fpn_hidden_states, "vision_pos_embeds": positions}
            self.session.cache.cache_vision_features(index, features)

    def _forget(self) -> None:
        self.session.reset_tracking_data()

    def _step(self, frame: int, prompt: Tensor | None, reverse: bool) -> Tensor:
        if prompt is not None:
            subject = self.session.obj_id_to_idx(1)
            self.session.obj_with_new_inputs = [1]
            if prompt.dtype == torch.bool:
                self.session.add_mask_inputs(subject, frame, prompt[None, None])
            else:
                labels = torch.tensor([[BOX_CORNERS]], dtype=torch.int32)
                points = {"point_coords": prompt[None, None], "point_labels": labels}
                self.session.add_point_inputs(subject, frame, points)
        return self.model(self.session, frame_idx=frame, reverse=reverse).pred_masks[0, 0]

    def _without_memory(self, frame: int) -> Tensor:
        features = self.session.cache.get_vision_features(frame)["vision_feats"][-1]
        return (features + self.model.no_memory_embedding)[:, 0]


class PackageSam2(Tracker):
    """The `sam2` package: pip install "lgf-kernels[sam2]".

    Args:
        model: a name on the Hugging Face hub, such as facebook/sam2.1-hiera-large, or CONFIG.yaml:CHECKPOINT.pt, where
            CONFIG.yaml is one that the package knows, such as configs/sam2.1/sam2.1_hiera_l.yaml.
        device: where to compute.
    """

    def __init__(self, model: str, device: torch.device):
        try:
            from sam2.build_sam import build_sam2, build_sam2_hf
        except ModuleNotFoundError as error:
            raise TrainerError(
                f'the teacher "sam2" needs {error.name}, which is not installed. Get it with: '
                'pip install "lgf-kernels[sam2]", or use --teacher transformers'
            ) from error
        config, _, checkpoint = model.partition(":")
        # hydra, torch.load and the hub raise different types for a wrong name.
        with explained(f"SAM2 cannot be loaded from {model}", Exception):
            built = build_sam2(config, checkpoint, device) if checkpoint else build_sam2_hf(model, device=device)
        self.model = frozen(built.float(), device)
        self.size = self.model.image_size

    def _watch(self, video: Tensor) -> None:
        self.frames = [self._encode(frame) for frame in normalised(video, (self.size, self.size), self.device)]

    def _encode(self, frame: Tensor) -> dict[str, list]:
        """Return the arguments of `track_step` that hold the features of a frame, flattened to (tokens, 1, channels)."""
        encoded = self.model.forward_image(frame)
        levels = slice(-self.model.num_feature_levels, None)
        features, positions = encoded["backbone_fpn"][levels], encoded["vision_pos_enc"][levels]
        return {
            "current_vision_feats": [x.flatten(2).permute(2, 0, 1) for x in features],
            "current_vision_pos_embeds": [x.flatten(2).permute(2, 0, 1) for x in positions],
            "feat_sizes": [x.shape[-2:] for x in positions],
        }

    def _forget(self) -> None:
        self.memories = {"cond_frame_outputs": {}, "non_cond_frame_outputs": {}}

    def _step(self, frame: int, prompt: Tensor | None, reverse: bool) -> Tensor:
        mask = points = None
        if prompt is not None and prompt.dtype == torch.bool:
            mask = prompt[None, None]
        elif prompt is not None:
            labels = torch.tensor([BOX_CORNERS], dtype=torch.int32, device=self.device)
            points = {"point_coords": prompt[None], "point_labels": labels}
        output = self.model.track_step(
            frame_idx=frame,
            is_init_cond_frame=prompt is not None,
            **self.frames[frame],
            point_inputs=points,
            mask_inputs=mask,
            output_dict=self.memories,
            num_frames=len(self.frames),
            track_in_reverse=reverse,
        )
        # As the package's own video predictor keeps them, and transformers too.
        output["maskmem_features"] = output["maskmem_features"].to(torch.bfloat16)
        self.memories["non_cond_frame_outputs" if prompt is None else "cond_frame_outputs"][frame] = output
        return output["pred_masks"][0, 0]

    def _without_memory(self, frame: int) -> Tensor:
        return (self.frames[frame]["current_vision_feats"][-1] + self.model.no_mem_embed)[:, 0]


#: Both load the same weights.
TRACKERS: dict[str, type[Tracker]] = {"transformers": TransformersSam2, "sam2": PackageSam2}
