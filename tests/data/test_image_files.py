"""Image files as people have them: photos, scans, drawings, animations, and files that are not what
they say.
"""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from metalearn.data.decoding import decode
from metalearn.tasks import FewShot, image_folder
from tests.helpers import Listed

COLOURS = (
    np.array([[[200, 0, 0], [0, 200, 0]], [[0, 0, 200], [90, 90, 90]]], dtype=np.uint8)
    .repeat(8, 0)
    .repeat(12, 1)
)


def read(path: Path, channels: int = 3) -> torch.Tensor:
    """One file as (height, width, channels)."""
    return decode(path, channels, None).permute(1, 2, 0)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_photos_are_turned_as_their_exif_orientation_says(tmp_path: Path, orientation: int) -> None:
    # pytorch/vision#7977: photos of phones lie on their side
    stored = {
        1: COLOURS,
        2: COLOURS[:, ::-1],
        3: COLOURS[::-1, ::-1],
        4: COLOURS[::-1],
        5: COLOURS.transpose(1, 0, 2),
        6: np.rot90(COLOURS),
        7: COLOURS[::-1, ::-1].transpose(1, 0, 2),
        8: np.rot90(COLOURS, -1),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = Image.fromarray(np.ascontiguousarray(stored))
    image.save(tmp_path / "photo.png", exif=exif)
    assert torch.equal(read(tmp_path / "photo.png"), torch.from_numpy(COLOURS))
    image.save(tmp_path / "photo.jpg", exif=exif, quality=100, subsampling=0)
    assert (read(tmp_path / "photo.jpg").int() - torch.from_numpy(COLOURS).int()).abs().max() < 12
    with Image.open(
        tmp_path / "photo.png"
    ) as opened:  # a data set that hands over the opened image, as torchvision's do
        tasks = FewShot(Listed([(opened.convert("RGB"), 0)] * 2), 1, 1, 1, tasks=1)
    assert torch.equal(tasks[0].support.inputs[0], torch.from_numpy(COLOURS).permute(2, 0, 1) / 255)


def test_grey_images_among_colour_ones_are_colour() -> None:
    # pytorch/vision#302
    grey, colour = Image.new("L", (4, 4), 51), Image.new("RGB", (4, 4), (255, 0, 0))
    for first, second in ((grey, colour), (colour, grey)):
        support, query = FewShot(Listed([(first, 0), (second, 0)]), 1, 1, 1, tasks=1)[0]
        values = torch.cat([support.inputs, query.inputs])[:, :, 0, 0]
        values = values.sort(1).values[values[:, 1].argsort()]  # the colour image first
        torch.testing.assert_close(values, torch.tensor([[0.0, 0.0, 1.0], [0.2, 0.2, 0.2]]))
    pairs = [(torch.full((1, 4, 4), 0.5), 0), (torch.zeros(3, 4, 4), 0)]
    assert FewShot(Listed(pairs), 1, 1, 1, tasks=1)[0].support.inputs.shape == (1, 3, 4, 4)
    with pytest.raises(ValueError, match=r"item 1 of Listed has shape \(1, 5, 5\)"):
        FewShot(Listed([(torch.zeros(1, 4, 4), 0), (torch.zeros(1, 5, 5), 0)]), 1, 1, 1, tasks=1)


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_sixteen_bits_keep_their_range(tmp_path: Path, suffix: str) -> None:
    values = np.array([[0, 257, 32896, 65535]], dtype=np.uint16)
    Image.fromarray(values).save(tmp_path / f"scan.{suffix}")
    assert read(tmp_path / f"scan.{suffix}", 1).flatten().tolist() == [0, 1, 128, 255]
    assert read(tmp_path / f"scan.{suffix}").shape == (1, 4, 3)
    with Image.open(tmp_path / f"scan.{suffix}") as opened:
        exact = FewShot(Listed([(opened, 0)] * 2), 1, 1, 1, tasks=1)[0].support.inputs
    torch.testing.assert_close(
        exact.flatten(), torch.from_numpy(values.astype(np.float32)).flatten() / 65535
    )
    arrays = FewShot(Listed([(values, 0)] * 2), 1, 1, 1, tasks=1)[0].support.inputs
    torch.testing.assert_close(arrays.flatten(), exact.flatten())


def test_floating_point_images_are_read_from_zero_to_one_and_otherwise_refused(
    tmp_path: Path,
) -> None:
    Image.fromarray(np.array([[0.0, 0.2, 1.0]], dtype=np.float32)).save(tmp_path / "unit.tif")
    assert read(tmp_path / "unit.tif", 1).flatten().tolist() == [0, 51, 255]
    Image.fromarray(np.array([[-4.0, 300.0]], dtype=np.float32)).save(tmp_path / "wide.tif")
    with pytest.raises(ValueError, match=r"wide.tif .* from -4 to 300; .* 0 to 1"):
        decode(tmp_path / "wide.tif", 1, None)
    with pytest.raises(ValueError, match="item 0 of Listed holds NaN or infinity"):
        FewShot(Listed([(torch.full((1, 2, 2), torch.nan), 0)] * 2), 1, 1, 1, tasks=1)


@pytest.mark.filterwarnings("error")
def test_what_is_transparent_is_white(tmp_path: Path) -> None:
    # pytorch/vision#302: palettes with transparency
    hidden = Image.new("RGBA", (4, 2), (10, 20, 30, 0))
    hidden.paste((200, 100, 50, 255), (0, 0, 2, 2))
    palette = hidden.convert("RGB").quantize(4)
    palette.info["transparency"] = bytes(
        [255 if c == (200, 100, 50) else 0 for c in _palette(palette)]
    )
    ink = Image.new("LA", (4, 2), (0, 0))
    ink.paste((60, 255), (0, 0, 2, 2))
    for image, left in ((hidden, [200, 100, 50]), (palette, [200, 100, 50]), (ink, [60, 60, 60])):
        image.save(tmp_path / "drawing.png")
        pixels = read(tmp_path / "drawing.png")
        assert pixels[0, 0].tolist() == left and pixels[0, 3].tolist() == [255, 255, 255]


def _palette(image: Image.Image) -> list[tuple[int, ...]]:
    values = image.getpalette() or []
    return [tuple(values[i : i + 3]) for i in range(0, len(values), 3)]


def test_cmyk_and_one_bit_and_animations(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    Image.new("CMYK", (4, 4), (0, 255, 255, 0)).save(tmp_path / "print.jpg")
    assert (read(tmp_path / "print.jpg")[0, 0].int() - torch.tensor([255, 0, 0])).abs().max() < 4
    Image.new("1", (4, 4), 1).save(tmp_path / "scan.png")
    assert read(tmp_path / "scan.png", 1).unique().tolist() == [255]
    folder = tmp_path / "own" / "train" / "a"
    folder.mkdir(parents=True)
    frames = [Image.new("L", (4, 4), value) for value in (40, 200)]
    frames[0].save(folder / "moving.gif", save_all=True, append_images=frames[1:])
    assert image_folder(tmp_path / "own", size=None, cache=False).images.unique().tolist() == [40]
    assert "1 of 1 images have several frames, of which the first is read" in caplog.text


@pytest.mark.parametrize(
    ("suffix", "kept"),
    [("png", 0.6), ("jpg", 0.5), ("gif", 0.3), ("bmp", 0.5), ("webp", 0.5), ("tif", 0.5)],
)
def test_truncated_files_are_named(tmp_path: Path, suffix: str, kept: float) -> None:
    path = tmp_path / f"half.{suffix}"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 40, 3), dtype=np.uint8)).save(
        path
    )
    content = path.read_bytes()
    path.write_bytes(content[: int(kept * len(content))])
    with pytest.raises(
        ValueError, match=rf"half.{suffix} is not a readable image .*replace it or delete it"
    ):
        decode(path, 3, None)


def test_other_files_under_an_image_name_are_named(tmp_path: Path) -> None:
    for name, content in (("page.jpg", b"<html>404</html>"), ("noise.png", bytes(range(256)))):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=f"{name} is not a readable image"):
            decode(tmp_path / name, 3, None)
    folder = tmp_path / "own" / "train" / "a"
    folder.mkdir(parents=True)
    (folder / "folder.png").mkdir()
    with pytest.raises(ValueError, match=r"train/a has no images"):
        image_folder(tmp_path / "own")
    (folder / "lost.png").symlink_to(tmp_path / "nowhere.png")
    with pytest.raises(
        FileNotFoundError, match=r"lost.png is a link to a file that does not exist"
    ):
        image_folder(tmp_path / "own")


@pytest.mark.parametrize("side", [12_000, 60_000])
def test_an_image_that_claims_too_many_pixels_is_refused_before_it_is_unpacked(
    tmp_path: Path, side: int
) -> None:
    header = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(b"")), (b"IEND", b"")]
    body = b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in chunks
    )
    (tmp_path / "huge.png").write_bytes(b"\x89PNG\r\n\x1a\n" + body)
    with pytest.raises(
        ValueError, match=r"huge.png is too large .*raise PIL.Image.MAX_IMAGE_PIXELS"
    ):
        decode(tmp_path / "huge.png", 3, 84)


@pytest.mark.parametrize(
    ("size", "error", "message"),
    [
        (0, ValueError, "size=0 must be at least 1"),
        (-4, ValueError, "size=-4"),
        (8.5, TypeError, "must be a whole number"),
        (True, TypeError, "size=True"),
        ("84", TypeError, "size='84'"),
        (10**7, ValueError, "GB, but this machine has"),
    ],
)
def test_sizes_that_cannot_be_are_refused(
    tmp_path: Path, size: object, error: type[Exception], message: str
) -> None:
    (tmp_path / "train" / "a").mkdir(parents=True)
    Image.new("RGB", (4, 4)).save(tmp_path / "train" / "a" / "0.png")
    with pytest.raises(error, match=message):
        image_folder(tmp_path, size=size)  # type: ignore[arg-type]
