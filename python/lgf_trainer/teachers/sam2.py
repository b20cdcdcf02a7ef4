"""The two implementations of SAM2 that can teach: the one of transformers, and the `sam2` package."""

import torch
from torch import Tensor

from ..runtime.errors import TrainerError, in_short
from ..runtime.hub import frozen, pretrained
from .base import Teacher, normalised

BOX_CORNERS = (2, 3)  # SAM2's labels of the two points that stand for a box


class TransformersSam2(Teacher):
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
            positions = positions or encoded.fpn_position_encoding
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


class PackageSam2(Teacher):
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
        try:
            built = build_sam2(config, checkpoint, device) if checkpoint else build_sam2_hf(model, device=device)
        except Exception as error:  # whatever hydra, torch.load or the hub have to say about a wrong name
            raise TrainerError(f"SAM2 cannot be loaded from {model}: {in_short(error)}") from error
        self.model = frozen(built.float(), device)
        self.size = self.model.image_size

    def _watch(self, video: Tensor) -> None:
        self.frames = [self._encode(frame) for frame in normalised(video, (self.size, self.size), self.device)]

    def _encode(self, frame: Tensor) -> dict[str, list]:
        """The arguments of `track_step` that hold the features of a frame, flattened to (tokens, 1, channels)."""
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


#: What `--teacher` may be. Both load the same weights.
TEACHERS: dict[str, type[Teacher]] = {"transformers": TransformersSam2, "sam2": PackageSam2}
