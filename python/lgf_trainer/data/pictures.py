"""Reading pictures: upright, in sRGB with 8 bits, or the first frame of a video."""

import io
from contextlib import suppress
from pathlib import Path

import numpy as np
from PIL import Image, ImageCms, ImageOps, UnidentifiedImageError

from ..runtime.errors import TrainerError, explained
from .fit import Fit
from .video import Video, VideoError

SRGB = ImageCms.createProfile("sRGB")


def read_picture(path: Path) -> Image.Image:
    """Return a picture as RGB.

    Raises:
        TrainerError: it cannot be read, or is transparent, or its numbers have no meaning as colours.
    """
    with (
        explained(f"{path} cannot be read", OSError, way_out="Give a picture or a video"),
        suppress(UnidentifiedImageError),
    ):
        with Image.open(path) as image:
            return _rgb(ImageOps.exif_transpose(image), path)
    try:
        video = Video(path, rate=1)
        ((_, frames),) = video.windows([0], 1, Fit.stretch(video.size, video.size))
    except VideoError as error:
        raise TrainerError(f"{path} is neither a picture nor a video to be used: {error}") from error
    return Image.fromarray(frames[0].permute(1, 2, 0).numpy())


def _rgb(image: Image.Image, path: Path) -> Image.Image:
    profile = image.info.get("icc_profile")
    if image.has_transparency_data:
        grey = image.mode in ("L", "LA")
        image = image.convert("RGBA")
        if image.getextrema()[3][0] < 255:
            raise TrainerError(f"{path} has transparent parts. Put it on a background first")
        image = image.convert("L" if grey else "RGB")
    if image.mode.startswith("I"):  # 16 bits of grey, which convert("RGB") would cut off at 255
        grey = np.asarray(image)
        if grey.min() < 0 or grey.max() > 65535:
            raise TrainerError(f"{path} has more than 16 bits a pixel. Save it with 8 or 16")
        image = Image.fromarray(((grey.astype(np.uint32) + 128) // 257).astype(np.uint8))
    elif image.mode in ("F", "LAB", "HSV"):
        raise TrainerError(
            f"{path} is stored in Pillow's mode {image.mode}, which is no picture for a display. Save it as RGB"
        )
    if not profile:
        return image.convert("RGB")
    unusable = f"{path} has a colour profile that cannot be used"
    with explained(unusable, ImageCms.PyCMSError, OSError, way_out="Save it as sRGB"):
        return _in_srgb(image, profile)


def _in_srgb(image: Image.Image, profile: bytes) -> Image.Image:
    """Return a picture as RGB by its own profile, which may be one of RGB for pictures in grey or with a palette."""
    own = ImageCms.ImageCmsProfile(io.BytesIO(profile))
    if own.profile.xcolor_space.strip() not in ("GRAY", "CMYK"):
        image = image.convert("RGB")
    return ImageCms.profileToProfile(image, own, SRGB, outputMode="RGB")
