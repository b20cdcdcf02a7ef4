"""Articulated clips whose motion is known exactly.

A scene is a stack of rigid, textured capsules (a torso, a head, two-segment arms and legs) above a textured
background. Every quantity follows from two analytic maps, so nothing is ever estimated:

    surface(t, point) -> (part, uv)     what is seen at an image point, and where on that part
    locate(t, part, uv) -> point        where that surface point is at another time

Points are (y, x) in pixels; pixel (i, j) has its centre at (i + 0.5, j + 0.5).
"""

import math
from dataclasses import dataclass

import torch
from lgf_trainer.evaluation.motion import TOKEN
from torch import Tensor


@dataclass(frozen=True)
class Scene:
    """P parts over T frames; a later part hides an earlier one, and part 0 is the background.

    Attributes:
        angle: (T, P) rotation of each part, radians.
        centre: (T, P, 2) image position of each part's origin, pixels.
        half_length: (P,) half the length of a capsule's axis, pixels (the background's is infinite).
        radius: (P,) radius of a capsule, pixels.
        colour: (P, 3) mean colour.
        frequency, phase, tint: (P, K, 2), (P, K), (P, K, 3) the plane waves that make up each texture.
    """

    angle: Tensor
    centre: Tensor
    half_length: Tensor
    radius: Tensor
    colour: Tensor
    frequency: Tensor
    phase: Tensor
    tint: Tensor

    def surface(self, t: int, points: Tensor) -> tuple[Tensor, Tensor]:
        """Return the topmost part (N,) at image points (N, 2) of frame t, and the points (N, 2) in its coordinates."""
        offset = points[:, None] - self.centre[t]
        local = torch.einsum("npi,pij->npj", offset, self._rotation(t))  # R^T (p - c) for every part
        along = local[..., 0]
        beyond = along - torch.maximum(torch.minimum(along, self.half_length), -self.half_length)
        inside = beyond.square() + local[..., 1].square() <= self.radius.square()
        order = torch.arange(len(self.radius))
        part = (inside * order).argmax(1)
        return part, local[torch.arange(len(points)), part]

    def locate(self, t: int, part: Tensor, uv: Tensor) -> Tensor:
        """Return image position (N, 2) at frame t of the surface points `uv` (N, 2) of `part` (N,)."""
        return (self._rotation(t)[part] @ uv[:, :, None])[:, :, 0] + self.centre[t, part]

    def visible(self, t: int, part: Tensor, uv: Tensor, size: tuple[int, int]) -> Tensor:
        """Return which surface points (N,) are inside an image of `size` pixels and not hidden at frame t."""
        points = self.locate(t, part, uv)
        inside = ((points >= 0) & (points < torch.tensor(size))).all(1)
        return inside & (self.surface(t, points)[0] == part)

    def paint(self, part: Tensor, uv: Tensor) -> Tensor:
        """Return colour (N, 3) in [-1, 1] of surface points: a property of the surface, the same at every time."""
        wave = torch.sin((self.frequency[part] * uv[:, None]).sum(-1) + self.phase[part])
        return (self.colour[part] + (wave[..., None] * self.tint[part]).sum(1)).clamp(-1, 1)

    def _rotation(self, t: int) -> Tensor:
        cos, sin = self.angle[t].cos(), self.angle[t].sin()
        return torch.stack([torch.stack([cos, -sin], -1), torch.stack([sin, cos], -1)], -2)


@dataclass(frozen=True)
class Clip:
    """A rendered scene.

    Attributes:
        video: (T, 3, 8H, 8W) pixels in [-1, 1].
        motion: (T-1, H, W, 2) true displacement (dy, dx), in tokens, of the surface at each token's centre.
        visible: (T-1, H, W) whether that surface point can be seen in both frames of the pair.
        scene: what was rendered.
    """

    video: Tensor
    motion: Tensor
    visible: Tensor
    scene: Scene

    @property
    def moving(self) -> Tensor:
        """(T-1, H, W): tokens seen in both frames that move by more than half a token. The demo's errors are over these."""
        return self.visible & (self.motion.norm(dim=-1) > 0.5)


def make_clip(seed: int, frames: int, height: int, width: int) -> Clip:
    """Return a clip of `frames` frames and `height` x `width` tokens, a function of its seed alone."""
    size = (height * TOKEN, width * TOKEN)
    scene = make_scene(seed, frames, size)
    pixels, centres = grid_points(*size), grid_points(height, width) * TOKEN
    video = torch.stack([scene.paint(*scene.surface(t, pixels)) for t in range(frames)])
    motion, visible = [], []
    for t in range(frames - 1):
        part, uv = scene.surface(t, centres)
        motion.append((scene.locate(t + 1, part, uv) - centres) / TOKEN)
        visible.append(scene.visible(t + 1, part, uv, size))
    return Clip(
        video=video.unflatten(1, size).permute(0, 3, 1, 2).contiguous(),
        motion=torch.stack(motion).unflatten(1, (height, width)),
        visible=torch.stack(visible).unflatten(1, (height, width)),
        scene=scene,
    )


def tracks(clip: Clip, count: int, seed: int) -> dict[str, Tensor]:
    """Return the true tracks of `count` points, as `lgf_kernels.point_correspondence_loss` takes them.

    Returns:
        queries (count, 3): a frame and a place there, anywhere between the centres of the border's tokens; tracks
        (count, T, 2): where that surface point is in every frame, in tokens; visible (count, T): 1 where it can be seen.
    """
    rng = torch.Generator().manual_seed(seed)
    frames, grid = len(clip.video), clip.motion.shape[1:3]
    frame = torch.randint(frames, (count,), generator=rng)
    place = torch.rand(count, 2, generator=rng) * (torch.tensor(grid) - 1)
    part, uv = torch.empty(count, dtype=torch.long), torch.empty(count, 2)
    for t in range(frames):
        part[frame == t], uv[frame == t] = clip.scene.surface(t, (place[frame == t] + 0.5) * TOKEN)
    size = tuple(TOKEN * side for side in grid)
    found = [clip.scene.locate(t, part, uv) / TOKEN - 0.5 for t in range(frames)]
    seen = [clip.scene.visible(t, part, uv, size).float() for t in range(frames)]
    return {
        "queries": torch.cat([frame[:, None].float(), place], 1),
        "tracks": torch.stack(found, 1),
        "visible": torch.stack(seen, 1),
    }


def grid_points(height: int, width: int) -> Tensor:
    """Return centres (height * width, 2) of the cells of a grid, in units of one cell."""
    y, x = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij")
    return torch.stack([y, x], -1).reshape(-1, 2)


# --- scenes ---------------------------------------------------------------------------------------------------


def make_scene(seed: int, frames: int, size: tuple[int, int], figures: int = 2, waves: int = 6) -> Scene:
    """Return a slowly panning background and `figures` walking figures that pass one another."""
    rng = torch.Generator().manual_seed(seed)
    pan = _uniform(rng, -1.5, 1.5, 2)
    ground = _Parts.single(
        angle=torch.zeros(frames), centre=torch.arange(frames)[:, None] * pan, half_length=math.inf, radius=math.inf
    )
    parts = _Parts.stack([ground] + [_figure(rng, frames, size) for _ in range(figures)])
    count = len(parts.radius)
    direction = _uniform(rng, 0, 2 * math.pi, count, waves)
    wavelength = _uniform(rng, 16, 64, count, waves)
    heading = torch.stack([direction.cos(), direction.sin()], -1)
    contrast = torch.tensor([0.6] + [1.0] * (count - 1))[:, None]  # figures stand out from a quiet background
    return Scene(
        angle=parts.angle,
        centre=parts.centre,
        half_length=parts.half_length,
        radius=parts.radius,
        colour=contrast * _uniform(rng, -0.9, 0.9, count, 3),
        frequency=2 * math.pi * heading / wavelength[..., None],
        phase=_uniform(rng, 0, 2 * math.pi, count, waves),
        tint=contrast[..., None] * _uniform(rng, -0.2, 0.2, count, waves, 3),
    )


@dataclass(frozen=True)
class _Parts:
    """The geometry of some parts: angle (T, P), centre (T, P, 2), half_length (P,), radius (P,)."""

    angle: Tensor
    centre: Tensor
    half_length: Tensor
    radius: Tensor

    @classmethod
    def single(cls, angle: Tensor, centre: Tensor, half_length: float, radius: float) -> "_Parts":
        return cls(angle[:, None], centre[:, None], torch.tensor([half_length]), torch.tensor([radius]))

    @classmethod
    def stack(cls, parts: list["_Parts"]) -> "_Parts":
        """Return one stack of parts, the later ones in front."""
        return cls(
            torch.cat([p.angle for p in parts], 1),
            torch.cat([p.centre for p in parts], 1),
            torch.cat([p.half_length for p in parts]),
            torch.cat([p.radius for p in parts]),
        )


def _figure(rng: torch.Generator, frames: int, size: tuple[int, int]) -> _Parts:
    """Return a torso with a head, and two pairs of arms and legs of two segments, one behind the torso and one in front.

    The speeds are bounded so that no surface point moves by 3 tokens in a frame: at most 1.5 tokens for the body and
    3 * 0.17 radians per frame at the end of a limb.
    """
    scale = float(_uniform(rng, 0.95, 1.2))
    walk = _walk(rng, frames, size)
    lean = _swing(rng, frames, amplitude=0.3) + float(_uniform(rng, -0.3, 0.3))
    torso = _bone(walk, lean, half_length=8 * scale, radius=10 * scale)
    spine = _heading(lean)
    shoulder, hip = walk - 9 * scale * spine, walk + 9 * scale * spine
    head = _bone(walk - 22 * scale * spine, lean, half_length=1.5 * scale, radius=8 * scale)

    def limb(joint: Tensor) -> list[_Parts]:
        upper_angle = lean + _swing(rng, frames, amplitude=0.3) + float(_uniform(rng, -0.9, 0.9))
        lower_angle = upper_angle + _swing(rng, frames, amplitude=0.3) + float(_uniform(rng, -0.5, 0.5))
        knee = joint + 14 * scale * _heading(upper_angle)
        foot = knee + 14 * scale * _heading(lower_angle)
        return [
            _bone((joint + knee) / 2, upper_angle, half_length=7 * scale, radius=7.5 * scale),
            _bone((knee + foot) / 2, lower_angle, half_length=7 * scale, radius=7 * scale),
        ]

    return _Parts.stack([*limb(shoulder), *limb(hip), torso, head, *limb(hip), *limb(shoulder)])


def _bone(centre: Tensor, angle: Tensor, half_length: float, radius: float) -> _Parts:
    return _Parts.single(angle, centre, half_length, radius)


def _heading(angle: Tensor) -> Tensor:
    """Return the image direction (T, 2) of a part's axis; angle 0 points down the image."""
    return torch.stack([angle.cos(), angle.sin()], -1)


def _walk(rng: torch.Generator, frames: int, size: tuple[int, int]) -> Tensor:
    """Return a straight path (T, 2) inside the image, mostly sideways, at 1 to 1.5 tokens per frame."""
    height, width = size
    speed = TOKEN * float(_uniform(rng, 1.0, 1.5))
    slope = float(_uniform(rng, -0.3, 0.3))
    side = 1 if torch.rand((), generator=rng) < 0.5 else -1
    velocity = speed * torch.tensor([math.sin(slope), side * math.cos(slope)])
    middle = torch.stack([height * _uniform(rng, 0.42, 0.55), width * _uniform(rng, 0.3, 0.7)])
    return middle + (torch.arange(frames)[:, None] - (frames - 1) / 2) * velocity


def _swing(rng: torch.Generator, frames: int, amplitude: float) -> Tensor:
    """Return a sinusoidal angle (T,) that changes by at most 0.56 `amplitude` per frame."""
    rate = float(_uniform(rng, 0.35, 0.56))
    return amplitude * torch.sin(rate * torch.arange(frames) + _uniform(rng, 0, 2 * math.pi))


def _uniform(rng: torch.Generator, low: float, high: float, *shape: int) -> Tensor:
    return low + (high - low) * torch.rand(shape, generator=rng)
