"""`lgf extract`: videos -> a cache of what training needs of them."""

import hashlib
import json
import time
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import torch
from accelerate.utils import gather_object
from torch import Tensor

from .commands import ExtractOptions as Options
from .data.cache import WindowCache, changed_by
from .data.flow import Source, sidecar_hash
from .data.report import Report, Skipped
from .data.samples import mix
from .data.sources import Clip, list_clips
from .data.subject import Detector, prompt_id, subject_of
from .data.transforms import TRANSFORMS
from .data.video import Fit, Video, VideoError, to_signed
from .generators.base import Encoders, Generator
from .runtime.distributed import this_process
from .runtime.errors import TrainerError
from .runtime.progress import progress
from .runtime.settings import to_settings
from .teachers.base import LostSubject, Student, Teacher, options_of

FORMAT = 1  # of the cache; counts up when windows mean something else
MAX_FRAMES = 100  # of a video, unless a window is longer
READING = 2  # of videos; counts up when other frames are chosen, and is said by the windows that this changes


def run(options: Options) -> None:
    """Make what is missing of a cache, and report what was left out.

    Raises:
        TrainerError: the options do not go together, or there is not a single window in the end.
    """
    started = time.monotonic()
    if not options.sources:
        raise TrainerError("no videos are given. Name files, folders, .jsonl manifests or .tar shards")
    state = this_process()
    clips = list_clips(options.sources)
    generator, teachers = Generator.read(options.model), _teachers(options)
    settings = _settings(options, generator, teachers, state.device)
    extraction = Extraction(
        options, WindowCache(options.output, settings), teachers, state.device, quiet=not state.is_main_process
    )
    try:
        report = extraction.run(clips[state.process_index :: state.num_processes])
    except torch.OutOfMemoryError as error:
        raise TrainerError(
            "the GPU's memory is full. Try --vae-tiling, another --dtype, or a smaller --teacher-model"
        ) from error
    report.seconds = time.monotonic() - started
    report = Report.merged(gather_object([report]))
    if state.is_main_process:
        print(report.text(), flush=True)
        report.save(options.output / "report.json")
        extraction.cache.index()
    state.destroy_process_group()
    if not report.written and not report.present:
        why = "what the videos lack is said above"
        if {reason for _, reason, _ in report.skipped} == {"no box"}:
            need = [name for name in teachers if Teacher.find(name).needs_subject]
            why = f"teachers such as {', '.join(need)} need a subject: give boxes or masks, or --detect"
        raise TrainerError(f"no window was made: {why}")


def _teachers(options: Options) -> dict[str, Any]:
    """Return teacher -> its options, checked, in the order of names."""
    if options.single_subject and not options.detect:
        raise TrainerError("--single-subject leaves out what --detect finds several times. Give --detect TEXT")
    names = options.teachers or (
        *(("sam2",) if options.teacher != "none" else ()), *(("dino",) if options.dino else ())
    )  # fmt: skip
    given: dict[str, dict[str, Any]] = {name: {} for name in sorted(names)}
    if "sam2" in given:
        fields = ("window", "similarity", "boundary", "save_features", "save_masks")
        given["sam2"] = {name: getattr(options, name) for name in fields} | {"model": options.teacher_model}
        if options.teacher != "none":
            given["sam2"]["implementation"] = options.teacher
    if "dino" in given:
        given["dino"] = {"model": options.dino_model}
    teachers = options_of(given, options.teacher_options)
    if options.single_subject and not any(Teacher.find(name).needs_subject for name in teachers):
        raise TrainerError(
            f"--single-subject looks at the subjects of windows, and none of the teachers ({', '.join(teachers) or 'none'}) "
            "needs one. Leave it out, or add a teacher such as sam2"
        )
    reading = [name for name, own in teachers.items() if Teacher.find(name).sidecars(own)]
    if options.transforms and reading:
        raise TrainerError(
            f"--transforms change the video, and {', '.join(reading)} reads files that were made of it as it is. Leave one out"
        )
    return teachers


def _settings(options: Options, generator: Generator, teachers: dict[str, Any], device: torch.device) -> dict[str, Any]:
    """Return what the windows of a cache have in common, for WindowCache."""
    own, asked = ([getattr(of, name) for name in ("frames", "height", "width")] for of in (generator, options))
    frames, height, width = (o if a is None else a for o, a in zip(own, asked, strict=True))
    if options.max_frames is not None and options.max_frames < frames:
        raise TrainerError(
            f"--max-frames is {options.max_frames}, and a window alone has {frames} frames. Give --max-frames {frames} "
            "or more, or fewer --frames"
        )
    tokens, *grid = generator.token_grid(frames, height, width)
    for name, chosen in teachers.items():
        Teacher.find(name).check_size(chosen, (height, width))
    dtype = options.dtype
    if dtype == "auto":
        dtype = "float32" if device.type == "cpu" else "bfloat16"
    settings = {
        "format": FORMAT,
        "model": str(Path(options.model)),  # a/ and ./a are one folder
        "image_to_video": generator.image_to_video,
        "frames": frames,
        "height": height,
        "width": width,
        "fps": generator.fps if options.fps is None else options.fps,
        "stride": options.stride,
        "dtype": dtype,
        "vae_tiling": options.vae_tiling,
        "grid": [frames if options.time == "frames" else tokens, *grid],
        "teacher": "none",
    }
    # The first two teachers have keys of their own: names of windows are hashes of all keys, and older caches stay valid.
    rows = {name: to_settings(chosen) for name, chosen in teachers.items()}
    if sam2 := rows.pop("sam2", None):
        settings |= {"teacher": sam2.pop("implementation"), "teacher_model": sam2.pop("model"), **sam2}
        settings |= {"time": options.time, "detect": options.detect}
    if dino := rows.pop("dino", None):
        settings["dino_model"] = dino["model"]
    if rows:
        settings |= {"teachers": rows, "time": options.time, "detect": options.detect}
    if settings.get("detect"):
        settings |= {name: getattr(options, name) for name in ("detector", "detect_threshold")}
    if options.single_subject:
        settings["single_subject"] = True
    return settings


class Models(NamedTuple):
    """Models that the windows are made with."""

    encoders: Encoders
    teachers: list[Teacher]
    detector: Detector | None


def _load(options: Options, settings: dict[str, Any], teachers: dict[str, Any], device: torch.device) -> Models:
    """Load the models, with the options of each teacher."""
    loaded = [Teacher.find(name)(chosen, device) for name, chosen in teachers.items()]
    detector = None
    if settings.get("detect") and any(teacher.needs_subject for teacher in loaded):
        detector = Detector(options.detect, options.detector, options.detect_threshold, device, options.single_subject)
    encoders = Encoders(Generator.read(options.model), device, getattr(torch, settings["dtype"]), options.vae_tiling)
    return Models(encoders, loaded, detector)


class Job(NamedTuple):
    """A video and the windows of it that are still to be made, as {first frame: {transform or None: key}}."""

    clip: Clip
    video: Video
    windows: dict[int, dict[str | None, str]]


class Extraction:
    """The windows of videos that a cache does not hold yet.

    Args:
        options: of the command.
        cache: of the windows; its settings say what they are made of.
        teachers: teacher -> its options.
        device: of the models, which are loaded when the first window is to be made.
        quiet: show no progress.
    """

    def __init__(
        self, options: Options, cache: WindowCache, teachers: dict[str, Any], device: torch.device, *, quiet: bool
    ):
        self.options, self.cache, self.settings, self.report = options, cache, cache.settings, Report()
        self._teachers, self._device, self._quiet = teachers, device, quiet
        self._needs_subject = any(Teacher.find(name).needs_subject for name in teachers)
        self._sidecars = sorted({s for name, own in teachers.items() for s in Teacher.find(name).sidecars(own)})
        frames, *grid = self.settings["grid"]
        step = (self.settings["frames"] - 1) // (frames - 1)
        self._student = Student(range(0, self.settings["frames"], step), tuple(grid))

    def run(self, clips: Sequence[Clip]) -> Report:
        """Make what is missing, a video at a time; nothing that a video does ends it."""
        with progress(clips, "extracting", unit="video", disable=self._quiet) as bar:
            for clip in bar:
                self.report.videos += 1
                try:
                    job = self._plan(clip)
                except Skipped as skipped:
                    self.report.skip(clip.name, skipped)
                    continue
                if job.windows:
                    self._extract(job)
                if job.video.cut_off:
                    self.report.skip(clip.name, Skipped("cut off", "its end is missing; the windows before are kept"))
                bar.set_postfix({"windows written": len(self.report.written)}, refresh=False)
        return self.report

    @cached_property
    def _models(self) -> Models:
        return _load(self.options, self.settings, self._teachers, self._device)

    def _plan(self, clip: Clip) -> Job:
        """Read what can be known of a video without decoding it.

        Raises:
            Skipped: none of its windows can be made.
        """
        caption = (clip.caption or "").strip()
        if not caption and not self.options.allow_empty_captions:
            raise Skipped("no caption", "give one in the manifest or in a .txt file beside the video")
        try:
            with clip.open() as file:
                content = hashlib.file_digest(file, "sha256").hexdigest()
            beside = [sidecar_hash(clip, suffix) for suffix in self._sidecars]
            video = Video(clip.name, self.settings["fps"], clip.open)
        except VideoError as error:
            raise Skipped("cannot be decoded", str(error)) from error
        except OSError as error:
            raise Skipped("cannot be read", error.strerror) from error
        length = self.settings["frames"]
        frames = min(
            video.frames, max(MAX_FRAMES, length) if self.options.max_frames is None else self.options.max_frames
        )
        if frames < length:
            raise Skipped(
                "too short", f"{frames} frames at {self.settings['fps']:g} per second, and {length} are needed"
            )
        windows = {}
        for start in range(0, frames - length + 1, self.settings["stride"]):
            try:
                key = self._key(content, start, caption, clip, beside)
            except Skipped as skipped:
                self.report.skip(f"{clip.name}, frame {start}", skipped)
                continue
            for transform in (None, *dict.fromkeys(self.options.transforms)):
                own = key if transform is None else changed_by(key, transform)
                if self._is_there(own, video.reread(start, length)):
                    self.report.present.append(own)
                else:
                    windows.setdefault(start, {})[transform] = own
        return Job(clip._replace(caption=caption), video, windows)

    def _is_there(self, key: str, reread: bool) -> bool:
        """Return whether a window is there, whole, and if `reread` with the frames that are chosen today."""
        if key not in self.cache:
            return False
        try:
            about = self.cache.read(key).about
        except TrainerError:
            self.report.damaged += 1
            return False
        outdated = reread and about.get("reading") != READING
        self.report.outdated += outdated
        return not outdated

    def _key(self, content: str, start: int, caption: str, clip: Clip, beside: list[str]) -> str:
        """Return a hash of what makes a window what it is: content of the video, first frame, caption, prompt and settings.

        And content of the files beside the video, where teachers read such.

        The windows of a video stand next to each other in the order of keys.
        """
        prompt = prompt_id(clip, start, self.settings.get("detect", "")) if self._needs_subject else None
        made_of = [content, start, caption, prompt, self.settings, *beside]
        return f"{content[:16]}-{start:05d}-{_hash(made_of)[:16]}"

    def _extract(self, job: Job) -> None:
        """Make the windows of a video, from one pass over it."""
        clip, video, models = job.clip, job.video, self._models
        fit = Fit.cover(video.size, (self.settings["height"], self.settings["width"]))
        try:
            for start, pixels in video.windows(list(job.windows), self.settings["frames"], fit):
                try:
                    subject = subject_of(clip, start, pixels[0], fit, models.detector) if self._needs_subject else None
                except Skipped as skipped:
                    self.report.skip(f"{clip.name}, frame {start}", skipped)
                    continue
                for transform, key in job.windows[start].items():
                    try:
                        self._make(job, start, transform, key, pixels, subject, fit, models)
                    except Skipped as skipped:
                        where = f"{clip.name}, frame {start}" + (f", {transform}" if transform else "")
                        self.report.skip(where, skipped)
        except VideoError as error:
            self.report.skip(clip.name, Skipped("damaged", str(error)))

    def _make(
        self,
        job: Job,
        start: int,
        transform: str | None,
        key: str,
        pixels: Tensor,
        subject: Tensor | None,
        fit: Fit,
        models: Models,
    ) -> None:
        clip = job.clip
        about = {"video": clip.name, "start": start, "caption": clip.caption, "source_size": fit.source}
        if job.video.reread(start, self.settings["frames"]):
            about["reading"] = READING
        video = to_signed(pixels)
        if transform:
            about["transform"] = transform
            video = TRANSFORMS[transform](video, torch.Generator().manual_seed(mix(key)))
        tensors = models.encoders(video, clip.caption, seed=key)
        if subject is not None:
            about["box"] = subject.tolist() if subject.shape == (4,) else None
        student = self._student._replace(source=Source(clip, start, fit))
        for teacher in models.teachers:
            try:
                found = teacher(video, subject, student)
            except LostSubject as lost:
                raise Skipped("subject lost", str(lost)) from lost
            if taken := tensors.keys() & found.keys():
                raise TrainerError(f"the teacher {teacher.name} makes {taken.pop()}, which is there already. Rename it")
            tensors |= found
        for name, tensor in tensors.items():
            if not tensor.isfinite().all():
                raise Skipped("not finite", f"{name} has values that are not finite or too large for {tensor.dtype}")
        self.cache.write(key, tensors, about)
        self.report.written.append(key)
        self.report.bytes += self.cache.path(key).stat().st_size


def _hash(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
