"""Subject of a window: a box or a mask that is given, or what GroundingDINO finds for a text."""

import hashlib
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor
from torch.nn.functional import interpolate

from ..runtime.hub import frozen, pretrained
from .report import Skipped
from .sources import Clip
from .video import Fit

#: Of two boxes that share more of what they cover together, the less certain one is the same thing again.
OVERLAP = 0.5


class Detector:
    """GroundingDINO: the boxes that fit a text.

    Args:
        text: what to look for, alternatives separated by dots: "a person . an animal".
        model: GroundingDINO, a name on the Hugging Face hub or a folder.
        threshold: how sure it must be, between 0 and 1.
        alone: of several boxes, take none and not the most certain one.
        device: where to compute.
    """

    def __init__(self, text: str, model: str, threshold: float, device: torch.device, alone: bool = False):
        from transformers import AutoProcessor, GroundingDinoForObjectDetection

        self.text, self.threshold, self.alone, self._device = text, threshold, alone, device
        weights = pretrained(GroundingDinoForObjectDetection, model, ("grounding-dino",), dtype=torch.float32)
        self._model = frozen(weights, device)
        self._processor = pretrained(AutoProcessor, model)

    @torch.no_grad()
    def __call__(self, frame: Tensor) -> Tensor:
        """Return boxes (n, 4) x0, y0, x1, y1 in pixels of a frame (3, H, W) of uint8, the most certain one first."""
        picture = frame.permute(1, 2, 0).cpu().numpy()
        inputs = self._processor(images=picture, text=self.text, return_tensors="pt").to(self._device)
        found = self._processor.post_process_grounded_object_detection(
            self._model(**inputs), inputs["input_ids"], threshold=self.threshold, target_sizes=[picture.shape[:2]]
        )[0]
        height, width = picture.shape[:2]
        edge = torch.tensor([width, height, width, height], dtype=torch.float32)
        boxes = found["boxes"].cpu().clamp(torch.zeros(4), edge)
        return suppressed(boxes[found["scores"].cpu().argsort(descending=True, stable=True)])


def suppressed(boxes: Tensor) -> Tensor:
    """Return those of the boxes (n, 4) that do not overlap with an earlier one of them."""
    kept: list[Tensor] = []
    for box in boxes:
        if all(_shared(box, other) <= OVERLAP for other in kept):
            kept.append(box)
    return torch.stack(kept) if kept else boxes


def _shared(one: Tensor, other: Tensor) -> float:
    """Return the intersection of two boxes over their union."""
    sides = (torch.minimum(one[2:], other[2:]) - torch.maximum(one[:2], other[:2])).clamp(min=0)
    both = sides.prod()
    return (both / ((one[2:] - one[:2]).prod() + (other[2:] - other[:2]).prod() - both).clamp(min=1e-6)).item()


def prompt_id(clip: Clip, start: int, detect: str) -> Any:
    """Return what identifies the subject of a window, before the video is decoded.

    Raises:
        Skipped: nothing is known of it.
    """
    if start in clip.masks:
        try:
            with clip.masks[start]() as file:
                return hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as error:
            raise Skipped("mask cannot be read", error.strerror) from error
    if start in clip.boxes:
        return clip.boxes[start]
    if detect:
        return "detected"
    raise Skipped("no box", f'give one in the manifest ("box": {{"{start}": [x0, y0, x1, y1]}}), a mask, or --detect')


def subject_of(clip: Clip, start: int, frame: Tensor, fit: Fit, detector: Detector | None) -> Tensor:
    """Return where the subject is in the first frame of a window: a box (4,), or a mask (H, W) of bool.

    Raises:
        Skipped: it is nowhere in what the model sees.
    """
    if start in clip.masks:
        return _read_mask(clip, start, fit)
    if start in clip.boxes:
        box = fit.box(*clip.boxes[start])
        if box is None:
            raise Skipped("no box", "it lies outside of the middle of the picture, which is all that the model sees")
        return torch.tensor(box)
    boxes = detector(frame)
    if not len(boxes):
        raise Skipped("nothing detected", f'nothing in the first frame fits "{detector.text}"')
    if detector.alone and len(boxes) > 1:
        raise Skipped("several subjects", f'{len(boxes)} places in the first frame fit "{detector.text}"')
    return boxes[0]


def _read_mask(clip: Clip, start: int, fit: Fit) -> Tensor:
    try:
        with clip.masks[start]() as file, Image.open(file) as image:
            mask = torch.from_numpy(not_black(ImageOps.exif_transpose(image)))[None, None].float()
    except OSError as error:
        raise Skipped("mask cannot be read", f"it is no picture: {error}") from error
    mask = fit.cut(interpolate(mask, fit.resized, mode="bilinear", antialias=True)[0, 0] >= 0.5)
    if not mask.any():
        raise Skipped("no box", "the mask is empty in the middle of the picture, which is all that the model sees")
    return mask


def not_black(image: Image.Image) -> np.ndarray:
    """Return (H, W) of bool. What is transparent is black, and so is a palette's black, whatever its number."""
    if image.mode != "P" and len(image.getbands()) == 1:
        return np.array(image) != 0
    return np.array(image.convert("RGBA").convert("RGBa"))[..., :3].any(-1)
