"""Pictures in and out: modes, depth, orientation, metadata, damage."""

import dataclasses
import io
import os
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from lljax import images
from lljax.errors import InputError


def gradient(height=5, width=7, channels=3, top=256, dtype=np.uint8):
    rng = np.random.default_rng(height * 100 + width)
    return rng.integers(0, top, (height, width, channels)).astype(dtype)


def roundtrip(tmp_path, image, name, **options):
    source, target = tmp_path / name, tmp_path / f"out_{name}"
    image.save(source, **options)
    picture = images.read(source)
    images.write(target, picture)
    with Image.open(target) as result:
        result.load()
        return picture, result


@pytest.mark.parametrize("name", ["a.png", "a.bmp", "a.tif", "a.PNG", "a.ppm"])
def test_lossless_formats_keep_every_pixel_and_the_format(tmp_path, name):
    pixels = gradient()
    picture, result = roundtrip(tmp_path, Image.fromarray(pixels), name)
    assert picture.pixels.dtype == np.uint8 and picture.alpha is None
    np.testing.assert_array_equal(picture.pixels, pixels)
    np.testing.assert_array_equal(np.asarray(result), pixels)
    assert result.format == images.FORMATS[os.path.splitext(name)[1].lower()]


@pytest.mark.parametrize("mode, written, name", [
    ("1", "L", "a.png"), ("L", "L", "a.png"), ("L", "L", "a.jpg"), ("L", "L", "a.tif"),
    ("LA", "LA", "a.png"), ("RGB", "RGB", "a.jpg"), ("RGBA", "RGBA", "a.png"),
    ("RGBA", "RGBA", "a.tif"), ("RGBA", "RGBA", "a.webp"), ("P", "RGB", "a.png"),
    ("CMYK", "RGB", "a.jpg"), ("CMYK", "RGB", "a.tif"), ("P", "P", "a.gif")])
def test_modes(tmp_path, mode, written, name):
    image = Image.fromarray(gradient(9, 6)).convert(mode)
    if mode in ("LA", "RGBA"):
        image.putalpha(100)  # WebP drops an alpha channel that hides nothing
    picture, result = roundtrip(tmp_path, image, name)
    assert result.mode == written and result.size == (6, 9)
    assert (picture.alpha is not None) == (mode in ("LA", "RGBA"))
    assert picture.grey == (mode in ("1", "L", "LA"))
    if name == "a.png":
        np.testing.assert_array_equal(np.asarray(result.convert("RGBA")),
                                      np.asarray(image.convert("RGBA")))


def test_alpha_survives_new_pixels(tmp_path):
    rgba = gradient(channels=4)
    Image.fromarray(rgba).save(tmp_path / "a.png")
    picture = images.read(tmp_path / "a.png")
    bright = dataclasses.replace(picture, pixels=255 - picture.pixels)
    images.write(tmp_path / "b.png", bright)
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "b.png")),
                                  np.dstack([255 - rgba[:, :, :3], rgba[:, :, 3]]))


@pytest.mark.parametrize("mode", ["RGB", "L", "P"])
def test_transparent_colour_becomes_alpha(tmp_path, mode):
    image = Image.new(mode, (3, 2), {"RGB": (9, 8, 7), "L": 9, "P": 0}[mode])
    image.putpixel((1, 1), {"RGB": (1, 1, 1), "L": 1, "P": 1}[mode])
    if mode == "P":
        image.putpalette([10, 20, 30, 40, 50, 60])
    picture, result = roundtrip(tmp_path, image, "a.png",
                                transparency={"RGB": (9, 8, 7), "L": 9, "P": 0}[mode])
    np.testing.assert_array_equal(picture.alpha, [[0, 0, 0], [0, 255, 0]])
    assert result.mode == ("LA" if mode == "L" else "RGBA")


def test_coloured_result_of_a_grey_picture_is_written_as_luma(tmp_path):
    Image.new("L", (2, 2), 100).save(tmp_path / "a.png")
    picture = images.read(tmp_path / "a.png")
    pixels = np.broadcast_to(np.uint8([200, 100, 0]), (2, 2, 3))
    images.write(tmp_path / "b.png", dataclasses.replace(picture, pixels=pixels))
    result = np.asarray(Image.open(tmp_path / "b.png"))
    np.testing.assert_array_equal(result, np.full((2, 2), 118))  # .299 * 200 + .587 * 100 = 118.5


@pytest.mark.parametrize("name", ["a.png", "a.tif"])
def test_16_bit_grey_is_kept(tmp_path, name):
    grey = gradient(top=65536, dtype=np.uint16)[:, :, 0]
    picture, result = roundtrip(tmp_path, Image.fromarray(grey), name)
    assert picture.pixels.dtype == np.uint16
    np.testing.assert_array_equal(picture.pixels[:, :, 1], grey)
    np.testing.assert_array_equal(np.asarray(result), grey)


def deep_png(colour_type, channels):
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", 2, 1, 16, colour_type, 0, 0, 0)),
              (b"IDAT", zlib.compress(b"\0" + bytes(2 * 2 * channels))), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in chunks)


@pytest.mark.parametrize("content", [
    deep_png(2, 3), deep_png(4, 2), deep_png(6, 4), b"P6 2 2 65535\n" + bytes(24)])
def test_16_bits_that_pillow_would_cut_are_refused(tmp_path, content):
    (tmp_path / "a.png").write_bytes(content)
    with pytest.raises(InputError, match="16 bits a channel.*convert"):
        images.read(tmp_path / "a.png")


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.webp", "a.tif"])
def test_orientation_is_applied_once(tmp_path, orientation, name):
    corners = Image.new("L", (48, 32))
    corners.paste(255, (0, 0, 16, 16))
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = orientation, "Maker"
    picture, result = roundtrip(tmp_path, corners.convert("RGB"), name, exif=exif)
    # Where the top left corner of the stored picture is shown, from the EXIF standard.
    shown = {1: (0, 0), 2: (0, -1), 3: (-1, -1), 4: (-1, 0), 5: (0, 0), 6: (0, -1), 7: (-1, -1),
             8: (-1, 0)}[orientation]
    assert picture.pixels.shape == ((32, 48, 3) if orientation < 5 else (48, 32, 3))
    for y in (0, -1):
        for x in (0, -1):
            assert (picture.pixels[y, x, 0] > 128) == ((y, x) == shown)
    assert result.getexif().get(0x0112, 1) == 1
    assert result.getexif()[0x010F] == "Maker"
    again = images.read(tmp_path / f"out_{name}")
    assert again.pixels.shape == picture.pixels.shape


def test_metadata_is_kept_and_the_stale_thumbnail_is_not(tmp_path):
    # One directory with Make and orientation 6, then a second (thumbnail) directory.
    tiff = (b"II*\0\x08\0\0\0" + struct.pack("<H", 2)
            + struct.pack("<HHI4s", 0x010F, 2, 4, b"Cam\0")
            + struct.pack("<HHII", 0x0112, 3, 1, 6) + struct.pack("<I", 38)
            + struct.pack("<HHHIII", 1, 0x0103, 3, 1, 6, 0))
    profile = b"not a real profile, carried as it is"
    picture, result = roundtrip(tmp_path, Image.new("RGB", (8, 4)), "a.jpg",
                                exif=b"Exif\0\0" + tiff, icc_profile=profile, dpi=(300, 150))
    assert picture.pixels.shape == (8, 4, 3)
    assert result.info["icc_profile"] == profile and result.info["dpi"] == (150, 300)
    kept = result.info["exif"]
    assert len(kept) == len(tiff) + 6
    assert [i for i, (a, b) in enumerate(zip(kept[6:], tiff, strict=True)) if a != b] == [30, 34]
    assert not result.getexif().get_ifd(1)


def test_a_cameras_multi_picture_file_is_its_first_picture(tmp_path):
    first = Image.new("RGB", (8, 8), (200, 30, 30))
    picture, result = roundtrip(tmp_path, first, "a.jpg", format="MPO", save_all=True,
                                append_images=[Image.new("RGB", (4, 4))])
    assert picture.format == result.format == "JPEG"
    np.testing.assert_allclose(picture.pixels[4, 4], [200, 30, 30], atol=3)


def test_jpeg_is_written_at_full_colour_resolution(tmp_path):
    _, result = roundtrip(tmp_path, Image.fromarray(gradient(16, 16)), "a.jpg", quality=30)
    assert [layer[1:3] for layer in result.layer] == [(1, 1)] * 3
    assert max(max(table) for table in result.quantization.values()) <= 12


def test_the_suffix_decides_what_is_written(tmp_path):
    Image.fromarray(gradient()).save(tmp_path / "really_jpeg.png", format="JPEG")
    picture = images.read(tmp_path / "really_jpeg.png")
    assert picture.format == "JPEG"
    images.write(tmp_path / "b.png", picture)
    assert Image.open(tmp_path / "b.png").format == "PNG"


def test_what_a_format_cannot_hold_is_refused_and_nothing_is_left(tmp_path):
    alpha = images.Picture(gradient(), alpha=gradient()[:, :, 0], mode="RGBA")
    deep = images.Picture(gradient(dtype=np.uint16), mode="I;16")
    for name, picture, match in (("a.jpg", alpha, "alpha"), ("a.jpg", deep, "16 bits"),
                                 ("a.png", dataclasses.replace(deep, mode="RGB"), "16 bits")):
        with pytest.raises(InputError, match=match):
            images.write(tmp_path / name, picture)
    with pytest.raises(InputError, match="cannot be written"):
        images.write(tmp_path / "no_folder" / "a.png", images.Picture(gradient()))
    assert not list(tmp_path.iterdir())


def test_atomic_keeps_the_old_file_when_writing_fails(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes(b"old")
    with pytest.raises(RuntimeError), images.atomic(path) as file:
        file.write(b"half")
        raise RuntimeError
    assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]
    with images.atomic(path) as file:
        file.write(b"new")
    assert path.read_bytes() == b"new" and list(tmp_path.iterdir()) == [path]


def test_damaged_files_are_named(tmp_path):
    whole = io.BytesIO()
    Image.fromarray(gradient(64, 64)).save(whole, "PNG")
    frames = [Image.new("L", (4, 4), grey) for grey in (0, 255)]
    frames[0].save(tmp_path / "moving.gif", save_all=True, append_images=frames[1:])
    Image.fromarray(np.ones((2, 2), np.float32)).save(tmp_path / "float.tif")
    for name, content in (("empty.jpg", b""), ("text.jpg", b"hello"),
                          ("cut.png", whole.getvalue()[:-3000])):
        (tmp_path / name).write_bytes(content)
    for name, match in (("empty.jpg", "is empty"), ("text.jpg", "not a picture"),
                        ("cut.png", "damaged or incomplete"), ("moving.gif", "2 frames"),
                        ("float.tif", "32 bits"), ("none.jpg", "no such file")):
        with pytest.raises(InputError, match=match) as caught:
            images.read(tmp_path / name)
        assert name in str(caught.value) and "\n" not in str(caught.value)


def test_too_many_pixels_is_one_line(tmp_path, monkeypatch):
    Image.new("L", (64, 64)).save(tmp_path / "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(InputError, match="more than 200 pixels"):
        images.read(tmp_path / "a.png")


def test_read_rgb(tmp_path):
    Image.fromarray(np.uint16([[0, 128, 129, 65535]])).save(tmp_path / "a.png")
    result = images.read_rgb(tmp_path / "a.png")
    assert result.dtype == np.uint8 and result.shape == (1, 4, 3)
    np.testing.assert_array_equal(result[0, :, 0], [0, 0, 1, 255])  # 65535 / 255 = 257 a step


@pytest.mark.parametrize("dtype, top", [(np.uint8, 255), (np.uint16, 65535)])
def test_integers_and_floats(dtype, top):
    every = np.arange(top + 1).astype(dtype)
    assert images.to_float(every).dtype == np.float32
    assert images.to_float(every)[[0, -1]].tolist() == [0, 1]
    np.testing.assert_array_equal(images.to_uint(images.to_float(every), dtype), every)
    steps = np.float64([-1, 0.5, 1.5, 2.5, top + 9]) / top
    np.testing.assert_array_equal(images.to_uint(steps, dtype), [0, 0, 2, 2, top])


def test_wrong_dtypes_and_nan_are_refused():
    with pytest.raises(ValueError, match="int32"):
        images.to_float(np.zeros(3, np.int32))
    with pytest.raises(ValueError, match="NaN"):
        images.to_uint(np.array([0, np.nan]))


def test_find(tmp_path):
    for name in ("b.JPG", "a.png", "notes.txt", ".hidden.png", "sub/c.tiff", ".git/d.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    names = [name for _, name in images.find([tmp_path])]
    assert names == ["a.png", "b.JPG", os.path.join("sub", "c.tiff")]
    assert [name for _, name in images.find([tmp_path], recursive=False)] == ["a.png", "b.JPG"]
    assert images.find([tmp_path / "notes.txt"]) == [(str(tmp_path / "notes.txt"), "notes.txt")]
    with pytest.raises(InputError, match="nowhere"):
        images.find([tmp_path, tmp_path / "nowhere"])


def test_pad_and_crop():
    pixels = np.arange(6).reshape(2, 3, 1)
    padded = images.pad(pixels, 1, 2)
    np.testing.assert_array_equal(padded[:, :, 0], [[0, 1, 2, 1, 0], [3, 4, 5, 4, 3],
                                                    [0, 1, 2, 1, 0]])
    np.testing.assert_array_equal(images.crop(padded, 2, 3), pixels)
    np.testing.assert_array_equal(images.pad(pixels, 2, 0)[:, 0, 0], [0, 3, 3, 3])  # too short
    np.testing.assert_array_equal(images.pad(pixels[:1, :1], 3, 3), np.zeros((4, 4, 1)))
