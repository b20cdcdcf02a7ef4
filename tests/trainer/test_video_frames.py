"""What the pixels of videos and pictures mean: orientation, colours, depth, fields and transparency, used or refused."""

import struct
from fractions import Fraction
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("av")

import av
from lgf_trainer.data.video import Fit, Video, VideoError
from PIL import Image, ImageCms
from support.clips import write_frames, write_numbered

RED = (230, 30, 30)


def first_frame(path: Path) -> torch.Tensor:
    """The first frame of a video at its own size, (height, width, 3)."""
    video = Video(path, 8)
    ((_, frames),) = video.windows([0], 1, Fit.stretch(video.size, video.size))
    return frames[0].permute(1, 2, 0)


def tagged(path: Path, codec: str = "libx264", pix_fmt: str = "yuv420p", convert=None, options=None, **tags) -> Path:
    """Three frames of RED, converted as `convert` says and with `tags` on the stream."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=8, options=options or {})
        stream.height, stream.width, stream.pix_fmt = 64, 64, pix_fmt
        for name, value in tags.items():
            setattr(stream.codec_context, name, value)
        for time in range(3):
            pixels = np.full((64, 64, 3), RED, np.uint8)
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24").reformat(format=pix_fmt, **(convert or {}))
            frame.pts, frame.time_base = time, Fraction(1, 8)
            for name, value in tags.items():
                setattr(frame, name, value)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def with_matrix(tmp_path: Path, a: int, b: int, c: int, d: int) -> Path:
    """A clip of 32 x 64 pixels whose quarters differ, with a display matrix in its header."""
    frame = torch.zeros(32, 64, 3, dtype=torch.uint8)
    frame[:16, :32], frame[:16, 32:], frame[16:, :32], frame[16:, 32:] = 20, 90, 160, 230
    path = write_frames(tmp_path / "a.mp4", [frame] * 3, [0, 1, 2], Fraction(1, 8))
    one, whole = 1 << 16, 1 << 30
    content = path.read_bytes()
    place = content.index(struct.pack(">9i", one, 0, 0, 0, one, 0, 0, 0, whole), content.index(b"tkhd"))
    matrix = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, whole)
    path.write_bytes(content[:place] + matrix + content[place + 36 :])
    return path


ORIENTATIONS = [(a, 0, 0, d) for a, d in product((1, -1), repeat=2)] + [
    (0, b, c, 0) for b, c in product((1, -1), repeat=2)
]


@pytest.mark.parametrize("a, b, c, d", ORIENTATIONS)
def test_all_eight_orientations(tmp_path, a, b, c, d):
    path = with_matrix(tmp_path, *(value << 16 for value in (a, b, c, d)))
    shown = first_frame(path).float().mean(-1)
    assert tuple(shown.shape) == ((32, 64) if a else (64, 32)) == Video(path, 8).size
    height, width = shown.shape
    for (x, y), grey in {
        (-1, -1): 20,
        (1, -1): 90,
        (-1, 1): 160,
        (1, 1): 230,
    }.items():  # of the stored picture's centre
        row, column = (2 + b * x + d * y) * height // 4, (2 + a * x + c * y) * width // 4
        assert abs(shown[row, column] - grey) < 8


@pytest.mark.parametrize("matrix", [(46341, 46341, -46341, 46341), (65536, 9000, 0, 65536), (0, 0, 0, 65536)])
def test_other_display_matrices_are_refused(tmp_path, matrix):
    with pytest.raises(VideoError, match="display matrix is not one of turns by 90 degrees"):
        Video(with_matrix(tmp_path, *matrix), 8)


@pytest.mark.parametrize("transfer, name", [(16, "PQ"), (18, "HLG"), (8, "linear"), (9, "logarithmic"), (17, "428")])
def test_brightness_that_is_not_for_an_ordinary_display_is_refused(tmp_path, transfer, name):
    with pytest.raises(VideoError, match=rf"coded as {name}.*tone mapping|coded as SMPTE {name}"):
        Video(tagged(tmp_path / "a.mp4", color_trc=transfer), 8)


@pytest.mark.parametrize("transfer", [1, 2, 4, 5, 6, 7, 13, 14, 15])
def test_ordinary_brightness_is_not(tmp_path, transfer):
    assert Video(tagged(tmp_path / "a.mp4", color_trc=transfer), 8).frames == 3


@pytest.mark.parametrize("primaries, name", [(9, "BT.2020"), (12, "Display P3"), (11, "DCI-P3"), (10, "CIE XYZ")])
def test_other_primary_colours_are_refused(tmp_path, primaries, name):
    with pytest.raises(VideoError, match=f"primary colours are {name}"):
        Video(tagged(tmp_path / "a.mp4", color_primaries=primaries), 8)


#: H.273's number of a matrix -> swscale's.
KNOWN = {1: 1, 2: 5, 4: 4, 5: 5, 6: 5, 7: 7, 9: 9}


@pytest.mark.parametrize("number", KNOWN)
@pytest.mark.parametrize("colour_range", [1, 2])
def test_colours_come_back_by_the_matrix_that_is_named(tmp_path, number, colour_range):
    convert = {"dst_colorspace": KNOWN[number], "dst_color_range": colour_range}
    path = tagged(tmp_path / "a.mkv", convert=convert, colorspace=number, color_range=colour_range, options={"qp": "0"})
    assert (first_frame(path)[32, 32] - torch.tensor(RED)).abs().max() <= 4


def test_a_matrix_that_swscale_does_not_know_is_refused(tmp_path):
    with pytest.raises(VideoError, match=r"colour matrix is number 8 of H\.273"):
        Video(tagged(tmp_path / "a.mp4", colorspace=8), 8)
    assert Video(tagged(tmp_path / "grey.mkv", "ffv1", "gray", colorspace=8), 8).frames == 3, "grey needs no matrix"


@pytest.mark.parametrize(
    "codec, pix_fmt", [("libx264", "yuv420p10le"), ("ffv1", "yuv444p16le"), ("ffv1", "gbrp12le"), ("ffv1", "bgr0")]
)
def test_bits_of_a_pixel(tmp_path, codec, pix_fmt):
    shown = first_frame(tagged(tmp_path / "a.mkv", codec, pix_fmt))
    assert (shown[32, 32] - torch.tensor(RED)).abs().max() <= 4


def test_interlaced_videos_are_refused(tmp_path):
    with pytest.raises(VideoError, match=r"it is interlaced\. Deinterlace it first"):
        Video(write_numbered(tmp_path / "a.mkv", 8, **{"x264-params": "tff=1"}), 8)


@pytest.mark.parametrize("alpha", [255, 254, 0])
def test_transparent_videos_are_refused(tmp_path, alpha):
    path = tmp_path / "a.mov"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("qtrle", rate=8)
        stream.height, stream.width, stream.pix_fmt = 32, 32, "argb"
        for time in range(3):
            pixels = np.full((32, 32, 4), (255, *RED), np.uint8)
            pixels[3, 3, 0] = alpha if time == 2 else 255
            frame = av.VideoFrame.from_ndarray(pixels, format="argb")
            frame.pts, frame.time_base = time, Fraction(1, 8)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    video = Video(path, 8)
    windows = video.windows([0, 1], 2, Fit.stretch(video.size, video.size))
    assert next(windows)[1][0, :, 5, 5].tolist() == list(RED)
    if alpha == 255:
        assert next(windows)[0] == 1
    else:
        with pytest.raises(VideoError, match=r"cannot be used beyond 0\.2 seconds: it has transparent parts"):
            next(windows)


@pytest.mark.parametrize("alpha", [255, 0])
def test_transparency_in_a_palette_is_refused(tmp_path, alpha):
    path, palette = tmp_path / "a.mov", np.full((256, 4), 255, np.uint8)
    palette[1] = (alpha, *RED)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("png", rate=8)
        stream.height, stream.width, stream.pix_fmt = 32, 32, "pal8"
        frame = av.VideoFrame.from_ndarray((np.eye(32, dtype=np.uint8), palette), format="pal8")
        frame.pts, frame.time_base = 0, Fraction(1, 8)
        container.mux(stream.encode(frame)), container.mux(stream.encode())
    if alpha == 255:
        assert first_frame(path)[3, 3].tolist() == list(RED)
    else:
        with pytest.raises(VideoError, match="it has transparent parts"):
            Video(path, 8)


def test_a_pixel_is_the_mean_over_its_area(tmp_path):
    path = tmp_path / "a.mkv"
    stripes = np.tile(np.repeat(np.array([0, 200], np.uint8), 4), 8)  # of 4 columns each
    with av.open(str(path), "w") as container:
        stream = container.add_stream("ffv1", rate=8)
        stream.height, stream.width, stream.pix_fmt = 64, 64, "bgr0"
        frame = av.VideoFrame.from_ndarray(np.tile(stripes[:, None], (64, 1, 3)), format="rgb24")
        frame.pts, frame.time_base = 0, Fraction(1, 8)
        container.mux(stream.encode(frame)), container.mux(stream.encode())
    ((_, frames),) = Video(path, 8).windows([0], 1, Fit.stretch((64, 64), (16, 16)))
    assert (frames[0, :, :, ::2] <= 1).all() and (frames[0, :, :, 1::2] >= 199).all()


def test_transparency_that_the_decoder_leaves_out_is_refused(tmp_path):
    path = tagged(tmp_path / "a.webm", "libvpx-vp9", "yuva420p")
    with av.open(str(path)) as container:
        assert next(container.decode(video=0)).format.name == "yuv420p", "the test needs a decoder that leaves it out"
    with pytest.raises(VideoError, match="it has transparent parts"):
        Video(path, 8)


@pytest.mark.parametrize("packing, refused", [(0, True), (3, True), (4, True), (5, True), (6, False)])
def test_two_views_in_one_picture_are_refused(tmp_path, packing, refused):
    path = write_numbered(tmp_path / "a.mp4", 8, **{"x264-params": f"frame-packing={packing}"})
    if not refused:
        assert Video(path, 8).frames == 8
        return
    with pytest.raises(VideoError, match=r"it holds two views, for stereo\. Cut one"):
        Video(path, 8)


def test_pictures_that_change_their_size_end_the_video_there(tmp_path):
    other = write_frames(tmp_path / "b.h264", [torch.zeros(32, 48, 3).byte()] * 8, range(8), Fraction(1, 8))
    one = write_numbered(tmp_path / "a.h264", 8)
    (tmp_path / "joined.h264").write_bytes(one.read_bytes() + other.read_bytes())
    video, seen = Video(tmp_path / "joined.h264", 8), []
    with pytest.raises(VideoError, match=r"beyond 1\.0 seconds: its pictures become 48 x 32, after 96 x 64"):
        for start, _ in video.windows([0, 4, 6], 4, Fit.stretch(video.size, video.size)):
            seen.append(start)
    assert seen == [0, 4]


# ---- pictures ---------------------------------------------------------------------------------------------------------


def picture(path: Path, image: Image.Image, **options) -> np.ndarray:
    from lgf_trainer.data.pictures import read_picture

    image.save(path, **options)
    return np.asarray(read_picture(path))


def test_pictures_with_16_bits_of_grey(tmp_path):
    grey = np.array([[0, 128, 129, 257], [32896, 65535, 65407, 65406]], np.uint16)
    for suffix in ("png", "tiff"):
        read = picture(tmp_path / f"a.{suffix}", Image.fromarray(grey))
        assert read.shape == (2, 4, 3) and read[..., 0].tolist() == [[0, 0, 1, 1], [128, 255, 255, 254]]


@pytest.mark.parametrize("mode", ["RGB", "L", "P", "1"])
def test_pictures_of_ordinary_modes(tmp_path, mode):
    image = Image.fromarray(np.full((4, 4, 3), 255, np.uint8)).convert(mode)
    assert (picture(tmp_path / "a.png", image) == 255).all()


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "RGB"])
def test_transparent_pictures_are_refused_and_opaque_ones_read(tmp_path, mode):
    from lgf_trainer.runtime.errors import TrainerError

    image = Image.new("RGBA", (4, 4), (255, 255, 255, 255)).convert(mode)
    options = {"transparency": 0} if mode == "P" else {"transparency": (1, 2, 3)} if mode == "RGB" else {}
    if mode == "P":
        image = Image.fromarray(np.ones((4, 4), np.uint8), "P")
        image.putpalette([9, 9, 9, 255, 255, 255])
    assert (picture(tmp_path / "a.png", image, **options) == 255).all()
    hole = {"RGBA": (0, 0, 0, 254), "LA": (0, 0), "P": 0, "RGB": (1, 2, 3)}[mode]
    image.putpixel((1, 1), hole)
    with pytest.raises(TrainerError, match=r"b\.png has transparent parts"):
        picture(tmp_path / "b.png", image, **options)


def test_a_colour_profile_is_used(tmp_path):
    swapped = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    # The red and the blue primary of the profile change places, so that its blue is to be read as red.
    red, blue = swapped.index(b"rXYZ"), swapped.index(b"bXYZ")
    swapped = bytearray(swapped)
    swapped[red], swapped[blue] = swapped[blue], swapped[red]
    image = Image.new("RGB", (4, 4), (0, 0, 255))
    assert (picture(tmp_path / "a.png", image)[0, 0] == (0, 0, 255)).all()
    for mode in ("RGB", "RGBA", "P"):
        read = picture(tmp_path / "b.png", image.convert(mode), icc_profile=bytes(swapped))[0, 0]
        assert read[0] > 250 and read[2] < 10
    read = picture(tmp_path / "b.png", Image.new("L", (4, 4), 9), icc_profile=bytes(swapped))
    assert abs(read[0, 0].astype(int) - 9).max() <= 1, "a profile of colours with a grey picture"


def grey_profile() -> bytes:
    """An ICC profile of grey whose numbers are proportional to the light."""
    white = b"XYZ " + bytes(4) + struct.pack(">3i", 63190, 65536, 54061)
    name = b"desc" + bytes(4) + struct.pack(">I", 2) + b"g" + bytes(81)
    curve = b"curv" + bytes(4) + struct.pack(">I", 1) + struct.pack(">H", 256) + bytes(2)
    tags, table, body = {b"desc": name, b"wtpt": white, b"kTRC": curve}, struct.pack(">I", 3), b""
    for tag, data in tags.items():
        table += tag + struct.pack(">II", 128 + 4 + 12 * len(tags) + len(body), len(data))
        body += data + bytes(-len(data) % 4)
    size = 128 + len(table + body)
    header = struct.pack(">I4sI4s4s4s", size, b"lcms", 0x02400000, b"mntr", b"GRAY", b"XYZ ") + bytes(12)
    header += b"acsp" + bytes(28) + struct.pack(">3i", 63190, 65536, 54061)
    return header.ljust(128, b"\0") + table + body


@pytest.mark.parametrize("mode", ["L", "LA", "I;16", "1"])
def test_the_profile_of_a_grey_picture_is_used(tmp_path, mode):
    grey, expected = (255, 255) if mode == "1" else (64, 137)
    image = Image.new("L", (4, 4), grey)
    image = Image.fromarray(np.full((4, 4), 257 * grey, np.uint16)) if mode == "I;16" else image.convert(mode)
    read = picture(tmp_path / "a.png", image, icc_profile=grey_profile())
    assert read.shape == (4, 4, 3) and (read == expected).all()


def test_numbers_that_are_no_colours_are_refused(tmp_path):
    from lgf_trainer.runtime.errors import TrainerError

    with pytest.raises(TrainerError, match="Pillow's mode F"):
        picture(tmp_path / "a.tiff", Image.fromarray(np.zeros((4, 4), np.float32)))


def test_a_video_stands_for_its_first_frame_and_says_why_not(tmp_path):
    from lgf_trainer.data.pictures import read_picture
    from lgf_trainer.runtime.errors import TrainerError

    read = np.asarray(read_picture(tagged(tmp_path / "a.mp4")))
    assert read.shape == (64, 64, 3) and abs(read[0, 0].astype(int) - RED).max() <= 4
    with pytest.raises(TrainerError, match=r"neither a picture nor a video to be used.*PQ"):
        read_picture(tagged(tmp_path / "b.mp4", color_trc=16))
