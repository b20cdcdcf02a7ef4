"""The work of `lgf extract`: which windows are to be made, and making them."""

import hashlib
import json
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import interpolate
from tqdm import tqdm

from lgf_kernels import local_gram_flow

from .data.cache import WindowCache
from .data.report import Report, Skipped
from .data.sources import Clip
from .data.subject import Detector
from .data.video import Fit, Video, VideoError, to_signed
from .generators.encoders import Encoders
from .runtime.errors import TrainerError
from .teachers.base import LostSubject, Teacher, Track, to_grid
from .teachers.dino import Dino


class Models(NamedTuple):
    """What the windows are made with."""

    encoders: Encoders
    teacher: Teacher | None
    detector: Detector | None
    dino: Dino | None


class Job(NamedTuple):
    """A video and the windows of it that are still to be made, as {first frame: key}."""

    clip: Clip
    video: Video
    windows: dict[int, str]


class Extraction:
    """Makes the windows of videos that a cache does not hold yet.

    Args:
        cache: where they go. Its settings say what they are made of.
        load_models: called once, when the first window is to be made.
        max_frames: no window goes beyond this frame of its video.
        allow_empty_captions: a video without a caption gets an empty one, instead of being skipped.
        quiet: show no progress.
    """

    def __init__(
        self,
        cache: WindowCache,
        load_models: Callable[[], Models],
        *,
        max_frames: int,
        allow_empty_captions: bool = False,
        quiet: bool = False,
    ):
        self.cache, self.settings, self.report = cache, cache.settings, Report()
        self._load_models, self._max_frames, self._quiet = load_models, max_frames, quiet
        self._allow_empty_captions = allow_empty_captions

    def run(self, clips: Sequence[Clip]) -> Report:
        """Make what is missing; nothing that a video does ends it."""
        jobs = []
        for clip in tqdm(clips, "looking at videos", unit="video", disable=self._quiet):
            self.report.videos += 1
            try:
                jobs.append(self._plan(clip))
            except Skipped as skipped:
                self.report.skip(clip.name, skipped)
        missing = sum(len(job.windows) for job in jobs)
        if missing:
            models = self._load_models()
            with tqdm(total=missing, desc="extracting", unit="window", disable=self._quiet) as progress:
                for job in jobs:
                    self._extract(job, models, progress)
        for job in jobs:
            if job.video.cut_off:
                self.report.skip(job.clip.name, Skipped("cut off", "its end is missing; the windows before are kept"))
        return self.report

    def _plan(self, clip: Clip) -> Job:
        """Read what can be known of a video without decoding it.

        Raises:
            Skipped: none of its windows can be made.
        """
        caption = (clip.caption or "").strip()
        if not caption and not self._allow_empty_captions:
            raise Skipped("no caption", "give one in the manifest or in a .txt file beside the video")
        try:
            with clip.open() as file:
                content = hashlib.file_digest(file, "sha256").hexdigest()
            video = Video(clip.name, self.settings["fps"], clip.open)
        except VideoError as error:
            raise Skipped("cannot be decoded", str(error)) from error
        except OSError as error:
            raise Skipped("cannot be read", error.strerror) from error
        frames, length = min(video.frames, self._max_frames), self.settings["frames"]
        if frames < length:
            raise Skipped(
                "too short", f"{frames} frames at {self.settings['fps']:g} per second, and {length} are needed"
            )
        windows = {}
        for start in range(0, frames - length + 1, self.settings["stride"]):
            try:
                key = self._key(content, start, caption, clip)
            except Skipped as skipped:
                self.report.skip(f"{clip.name}, frame {start}", skipped)
                continue
            if self._is_there(key):
                self.report.present.append(key)
            else:
                windows[start] = key
        return Job(clip._replace(caption=caption), video, windows)

    def _is_there(self, key: str) -> bool:
        if key not in self.cache:
            return False
        try:
            self.cache.read(key)
        except TrainerError:
            self.report.damaged += 1
            return False
        return True

    def _key(self, content: str, start: int, caption: str, clip: Clip) -> str:
        """Content of the video, first frame, caption, prompt and settings, hashed: what makes a window what it is.

        The windows of a video stand next to each other in the order of keys.
        """
        made_of = [content, start, caption, self._prompt_id(clip, start), self.settings]
        return f"{content[:16]}-{start:05d}-{_hash(made_of)[:16]}"

    def _prompt_id(self, clip: Clip, start: int) -> Any:
        """What the subject of a window is known by: enough to tell windows apart, and known before it is decoded."""
        if self.settings["teacher"] == "none":
            return None
        if start in clip.masks:
            try:
                with clip.masks[start]() as file:
                    return hashlib.file_digest(file, "sha256").hexdigest()
            except OSError as error:
                raise Skipped("mask cannot be read", error.strerror) from error
        if start in clip.boxes:
            return clip.boxes[start]
        if self.settings["detect"]:
            return "detected"
        raise Skipped(
            "no box", f'give one in the manifest ("box": {{"{start}": [x0, y0, x1, y1]}}), a mask, or --detect'
        )

    def _extract(self, job: Job, models: Models, progress: tqdm) -> None:
        """Make the windows of a video, from one pass over it."""
        clip, video = job.clip, job.video
        fit = Fit.cover(video.size, (self.settings["height"], self.settings["width"]))
        left = len(job.windows)
        try:
            for start, pixels in video.windows(list(job.windows), self.settings["frames"], fit):
                try:
                    self._make(job, start, pixels, fit, models)
                except Skipped as skipped:
                    self.report.skip(f"{clip.name}, frame {start}", skipped)
                left -= 1
                progress.update()
        except VideoError as error:
            self.report.skip(clip.name, Skipped("damaged", str(error)))
            progress.update(left)

    def _make(self, job: Job, start: int, pixels: Tensor, fit: Fit, models: Models) -> None:
        clip, key = job.clip, job.windows[start]
        about = {"video": clip.name, "start": start, "caption": clip.caption, "source_size": fit.source}
        video = to_signed(pixels)
        tensors = {"latents": models.encoders.video(video), "text": models.encoders.text(clip.caption)}
        if self.settings["image_to_video"]:
            tensors["image"] = models.encoders.image(video[0], seed=key)
        if models.teacher is not None:
            prompt = self._prompt(clip, start, pixels[0], fit, models.detector)
            about["box"] = prompt.tolist() if prompt.shape == (4,) else None
            try:
                forward, backward = models.teacher.track(video, prompt)
            except LostSubject as lost:
                raise Skipped("subject lost", str(lost)) from lost
            tensors |= self._lesson(forward, backward)
        if models.dino is not None:
            tensors["features_dino"] = models.dino(video[:: self._step], self.settings["grid"][1:]).half()
        for name, tensor in tensors.items():
            if not tensor.isfinite().all():
                raise Skipped("not finite", f"{name} has values that are not finite or too large for {tensor.dtype}")
        self.cache.write(key, tensors, about)
        self.report.written.append(key)
        self.report.bytes += self.cache.path(key).stat().st_size

    def _prompt(self, clip: Clip, start: int, frame: Tensor, fit: Fit, detector: Detector | None) -> Tensor:
        """Where the subject is in the first frame of a window: a box (4,), or a mask (H, W) of bool."""
        if start in clip.masks:
            return _read_mask(clip, start, fit)
        if start in clip.boxes:
            box = fit.box(*clip.boxes[start])
            if box is None:
                raise Skipped(
                    "no box", "it lies outside of the middle of the picture, which is all that the model sees"
                )
            return torch.tensor(box)
        box = detector(frame)
        if box is None:
            raise Skipped("nothing detected", f'nothing in the first frame fits "{detector.text}"')
        return box

    @property
    def _step(self) -> int:
        """Frames of a window from one that teachers are compared in to the next: 1, or those that the VAE pools."""
        return (self.settings["frames"] - 1) // (self.settings["grid"][0] - 1)

    def _lesson(self, forward: Track, backward: Track) -> dict[str, Tensor]:
        """The teacher's Local Gram Flow on the student's tokens, and what else the settings ask for."""
        settings, tensors = self.settings, {}
        grid = settings["grid"][1:]
        for direction, track in (("forward", forward), ("backward", backward)):
            features = to_grid(track.features[:: self._step], grid)
            tensors[f"teacher_{direction}"] = local_gram_flow(
                features[None],
                window=settings["window"],
                similarity=settings["similarity"],
                boundary=settings["boundary"],
            )[0].half()
            if settings["save_features"]:
                tensors[f"features_sam2_{direction}"] = features.half()
        if settings["save_masks"]:
            inside = (forward.masks > 0).float()[..., None]
            tensors["masks"] = to_grid(inside, grid)[..., 0].half()
        return tensors


def _read_mask(clip: Clip, start: int, fit: Fit) -> Tensor:
    try:
        with clip.masks[start]() as file, Image.open(file) as image:
            mask = torch.from_numpy(not_black(image))[None, None].float()
    except OSError as error:
        raise Skipped("mask cannot be read", f"it is no picture: {error}") from error
    mask = fit.cut(interpolate(mask, fit.resized, mode="bilinear", antialias=True)[0, 0] >= 0.5)
    if not mask.any():
        raise Skipped("no box", "the mask is empty in the middle of the picture, which is all that the model sees")
    return mask


def not_black(image: Image.Image) -> np.ndarray:
    """(H, W) of bool. What is transparent is black, and so is a palette's black, whatever its number."""
    if image.mode != "P" and len(image.getbands()) == 1:
        return np.array(image) != 0
    return np.array(image.convert("RGBA").convert("RGBa"))[..., :3].any(-1)


def _hash(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
