"""Finding the subject of a window by words: GroundingDINO draws the box that SAM2 is prompted with."""

import torch
from torch import Tensor

from ..runtime.hub import frozen, pretrained


class Detector:
    """The box that fits a text best.

    Args:
        text: what to look for, alternatives separated by dots: "a person . an animal".
        model: GroundingDINO, a name on the Hugging Face hub or a folder.
        threshold: how sure it must be, between 0 and 1.
        device: where to compute.
    """

    def __init__(self, text: str, model: str, threshold: float, device: torch.device):
        from transformers import AutoProcessor, GroundingDinoForObjectDetection

        self.text, self.threshold, self._device = text, threshold, device
        weights = pretrained(GroundingDinoForObjectDetection, model, ("grounding-dino",), dtype=torch.float32)
        self._model = frozen(weights, device)
        self._processor = pretrained(AutoProcessor, model)

    @torch.no_grad()
    def __call__(self, frame: Tensor) -> Tensor | None:
        """The box x0, y0, x1, y1 in pixels of a frame (3, H, W) of uint8, or None if nothing there fits the text."""
        picture = frame.permute(1, 2, 0).cpu().numpy()
        inputs = self._processor(images=picture, text=self.text, return_tensors="pt").to(self._device)
        found = self._processor.post_process_grounded_object_detection(
            self._model(**inputs), inputs["input_ids"], threshold=self.threshold, target_sizes=[picture.shape[:2]]
        )[0]
        if not len(found["scores"]):
            return None
        height, width = picture.shape[:2]
        edge = torch.tensor([width, height, width, height], dtype=torch.float32)
        return found["boxes"][found["scores"].argmax()].cpu().clamp(torch.zeros(4), edge)
