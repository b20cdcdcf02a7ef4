"""What the pixels of a decoded frame mean: orientation, shape and colours, each used or refused.

A property that FFmpeg reads but neither converts nor refuses would change pictures without a word.
"""

import struct
from typing import NamedTuple

import torch
from av import VideoFrame, VideoStream
from av.sidedata.sidedata import Type as SideData
from av.video.reformatter import ColorPrimaries, Colorspace, ColorTrc, VideoReformatter
from torch import Tensor

from .fit import Fit, Size

#: Transfer characteristics whose numbers are not those of an ordinary display.
OTHER_TRANSFERS = {
    ColorTrc.SMPTE2084: "PQ (HDR10)", ColorTrc.ARIB_STD_B67: "HLG (HDR)", ColorTrc.LINEAR: "linear light",
    ColorTrc.LOG: "logarithmic", ColorTrc.LOG_SQRT: "logarithmic", ColorTrc.SMPTE428: "SMPTE 428",
}  # fmt: skip

#: Primaries whose colours an ordinary display would show paler or brighter.
OTHER_PRIMARIES = {
    ColorPrimaries.BT2020: "BT.2020", ColorPrimaries.SMPTE428: "CIE XYZ", ColorPrimaries.SMPTE431: "DCI-P3",
    ColorPrimaries.SMPTE432: "Display P3",
}  # fmt: skip

#: H.273's number of the matrix -> swscale's. A frame without one (2) gets BT.601, FFmpeg's own default: chosen here,
#: because PyAV's choice has changed between versions, and a cache may be filled by several machines.
MATRICES = {
    1: Colorspace.ITU709, 2: Colorspace.ITU601, 4: Colorspace.FCC, 5: Colorspace.ITU601, 6: Colorspace.ITU601,
    7: Colorspace.SMPTE240M, 9: Colorspace.BT2020,
}  # fmt: skip

#: The numbers of FFmpeg's AVStereo3DType that put two views into one picture, or into every other picture.
TWO_VIEWS = range(1, 8)

TO_SDR = "Convert it to BT.709 first, for HDR with tone mapping (FFmpeg: zscale, tonemap)"


class Orientation(NamedTuple):
    """How a stored picture is turned to be shown: transposed first, then mirrored."""

    transposed: bool = False
    upside_down: bool = False
    mirrored: bool = False

    @classmethod
    def of(cls, frame: VideoFrame) -> "Orientation | None":
        """Return what the display matrix of a frame says, or None if it is none of the eight orientations."""
        if SideData.DISPLAYMATRIX not in frame.side_data:
            return cls()
        a, b, _, c, d, *_ = struct.unpack("=9i", bytes(frame.side_data[SideData.DISPLAYMATRIX]))
        if a and d and not (b or c):  # x' = a x, y' = d y
            return cls(False, d < 0, a < 0)
        if b and c and not (a or d):  # x' = c y, y' = b x
            return cls(True, b < 0, c < 0)
        return None

    def size(self, height: int, width: int) -> Size:
        return (width, height) if self.transposed else (height, width)

    def applied(self, picture: Tensor) -> Tensor:
        """Return (H, W, ...) as it is shown."""
        picture = picture.transpose(0, 1) if self.transposed else picture
        return picture.flip([axis for axis, mirrored in enumerate(self[1:]) if mirrored])


def stream_unsupported_reason(stream: VideoStream) -> str | None:
    """Return why a stream cannot be used that loses a property in decoding, and the way out; None if it can."""
    if stream.metadata.get("alpha_mode") == "1":  # of VP8 and VP9, whose decoders in FFmpeg leave transparency out
        return "it has transparent parts. Put it on a background first"
    return None


def unsupported_reason(frame: VideoFrame) -> str | None:
    """Return why the pixels of a frame cannot be used as they are, and the way out; None if they can."""
    if Orientation.of(frame) is None:
        return "its display matrix is not one of turns by 90 degrees and mirrorings. Encode it as it is to be shown"
    if SideData.STEREO3D in frame.side_data and bytes(frame.side_data[SideData.STEREO3D])[0] in TWO_VIEWS:
        return "it holds two views, for stereo. Cut one of them out first (FFmpeg: -vf stereo3d)"
    if frame.interlaced_frame:
        return "it is interlaced. Deinterlace it first (FFmpeg: -vf bwdif)"
    if transfer := OTHER_TRANSFERS.get(frame.color_trc):
        return f"its brightness is coded as {transfer}, not for an ordinary display. {TO_SDR}"
    if primaries := OTHER_PRIMARIES.get(frame.color_primaries):
        return f"its primary colours are {primaries}, not those of BT.709. {TO_SDR}"
    if not frame.format.is_rgb and len(frame.format.components) > 2 and frame.colorspace not in MATRICES:
        return f"its colour matrix is number {frame.colorspace} of H.273, which is not supported. {TO_SDR}"
    if _is_transparent(frame):
        return "it has transparent parts. Put it on a background first"
    return None


def displayed_size(frame: VideoFrame, aspect: float) -> Size:
    """Return height and width in square pixels; `aspect` is width / height of a stored pixel."""
    return Orientation.of(frame).size(frame.height, round(frame.width * aspect))


def pixels(frame: VideoFrame, fit: Fit, reformatter: VideoReformatter) -> Tensor:
    """Return the frame as (3, height, width) of uint8: the mean over a pixel's area, bilinear where it is enlarged."""
    orientation = Orientation.of(frame)
    height, width = orientation.size(*fit.resized)
    matrix = None if frame.format.is_rgb else MATRICES.get(frame.colorspace)
    stored = reformatter.reformat(frame, width, height, "rgb24", src_colorspace=matrix, interpolation="AREA")
    return fit.cut(orientation.applied(torch.from_numpy(stored.to_ndarray()))).permute(2, 0, 1).contiguous()


def _is_transparent(frame: VideoFrame) -> bool:
    has_alpha = frame.format.name == "pal8" or any(part.is_alpha for part in frame.format.components)
    return has_alpha and bool((frame.to_ndarray(format="rgba")[..., 3] < 255).any())
