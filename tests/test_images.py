"""Pictures in and out: modes, depth, orientation, metadata, damage."""

import dataclasses
import io
import os
import struct
import sys
import threading
import zlib

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from lljax import images
from lljax.errors import InputError
from tests.ugly import HEIC, PROFILE, TEXT, XMP, chunk, dng, noise, png, said, tiff, ugly


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


def unpacked(data):
    """uint16 [H, W, C] of a PNG that `images` wrote: every row filtered by "Sub"."""
    at, body = 8, b""
    while at < len(data):
        (size,) = struct.unpack_from(">I", data, at)
        kind, whole = data[at + 4:at + 8], data[at + 8:at + 8 + size]
        assert data[at:at + 12 + size] == chunk(kind, whole)
        if kind == b"IHDR":
            width, height, depth, colour, *_ = struct.unpack(">IIBBBBB", whole)
        body += whole if kind == b"IDAT" else b""
        at += 12 + size
    rows = np.frombuffer(zlib.decompress(body), np.uint8).reshape(height, -1)
    assert depth == 16 and set(rows[:, 0]) == {1}
    values = rows[:, 1:].reshape(height, width, 2 * {4: 2, 2: 3, 6: 4}[colour])
    return values.cumsum(1, dtype=np.uint8).view(">u2").astype(np.uint16)


@pytest.mark.parametrize("interlaced", [False, True])
@pytest.mark.parametrize("channels", [2, 3, 4])
@pytest.mark.parametrize("size", [(1, 1), (67, 1), (1, 67), (19, 13)])
def test_16_bit_colour_png_is_kept(tmp_path, size, channels, interlaced):
    pixels = np.random.default_rng(0).integers(0, 65536, (*size, channels)).astype(np.uint16)
    (tmp_path / "a.png").write_bytes(png(pixels, interlaced=interlaced))
    picture = images.read(tmp_path / "a.png")
    assert picture.mode == {2: "LA", 3: "RGB", 4: "RGBA"}[channels]
    assert picture.pixels.dtype == np.uint16
    if channels == 2:
        np.testing.assert_array_equal(picture.pixels, pixels[:, :, [0, 0, 0]])
    else:
        np.testing.assert_array_equal(picture.pixels, pixels[:, :, :3])
    if channels != 3:
        np.testing.assert_array_equal(picture.alpha, pixels[:, :, -1])
    images.write(tmp_path / "b.png", picture)
    written = unpacked((tmp_path / "b.png").read_bytes())
    np.testing.assert_array_equal(written, pixels)


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("extra", [None, 0, 1, 2])
def test_16_bit_colour_tiff_is_kept(tmp_path, order, extra):
    pixels = noise(channels=3 if extra is None else 4, bits=16)
    if extra == 1:  # the colours are multiplied by their alpha
        pixels[:, :, 3] += 30000
    tags = () if extra is None else [(338, 3, [extra])]
    (tmp_path / "a.tif").write_bytes(tiff(pixels, tags, order))
    picture = images.read(tmp_path / "a.tif")
    expected = pixels[:, :, :3]
    if extra == 1:
        expected = np.rint(expected / pixels[:, :, 3:] * 65535)
    assert picture.compression == "raw" and picture.pixels.dtype == np.uint16
    np.testing.assert_array_equal(picture.pixels, expected)
    assert (picture.alpha is None) == (extra in (None, 0))
    for compression in (None, "raw"):
        images.write(tmp_path / "b.tif", dataclasses.replace(picture, compression=compression))
        with Image.open(tmp_path / "b.tif") as image:
            assert image.info["compression"] == (compression or "tiff_adobe_deflate")
        again = images.read(tmp_path / "b.tif")
        np.testing.assert_array_equal(again.pixels, picture.pixels)
        np.testing.assert_array_equal(again.alpha, picture.alpha)


def test_16_bit_pictures_of_many_bands_are_whole(tmp_path, monkeypatch):
    monkeypatch.setattr(images, "_STRIP", 19 * 6 * 4)  # 4 rows
    picture = images.Picture(noise(bits=16))
    for name in ("a.png", "a.tif"):
        images.write(tmp_path / name, picture)
        np.testing.assert_array_equal(images.read(tmp_path / name).pixels, picture.pixels)
    with Image.open(tmp_path / "a.tif") as image:
        assert len(image.tag_v2[273]) == 4 and image.tag_v2[278] == 4


def test_16_bit_grey_and_alpha_fits_a_tiff_as_colour(tmp_path):
    picture = images.Picture(noise(channels=1, bits=16).repeat(3, 2), noise(bits=16)[:, :, 0], "LA")
    images.write(tmp_path / "a.tif", picture)
    again = images.read(tmp_path / "a.tif")
    np.testing.assert_array_equal(again.pixels, picture.pixels)
    np.testing.assert_array_equal(again.alpha, picture.alpha)


@pytest.mark.parametrize("channels", [1, 3])
def test_16_bit_transparent_colour_becomes_alpha(tmp_path, channels):
    pixels = noise(channels=channels, bits=16)
    pixels[2, 3], pixels[2, 4] = 257, 258  # the upper bytes are equal
    (tmp_path / "a.png").write_bytes(png(pixels, before=[(b"tRNS", b"\1\1" * channels)]))
    picture = images.read(tmp_path / "a.png")
    assert picture.grey == (channels == 1)
    np.testing.assert_array_equal(np.argwhere(picture.alpha != 65535), [[2, 3]])
    assert picture.alpha[2, 3] == 0
    images.write(tmp_path / "b.png", picture)
    np.testing.assert_array_equal(images.read(tmp_path / "b.png").alpha, picture.alpha)


@pytest.mark.parametrize("tags, convert", [
    ([(262, 3, [0])], lambda p: 65535 - p), ([(258, 3, [12])], None)])
def test_16_bit_grey_tiffs_of_other_kinds(tmp_path, tags, convert):
    if convert:
        grey = noise(channels=1, bits=16)
        content = tiff(grey, tags)
    else:  # 12 bits: two pixels in three bytes
        grey, convert = np.uint16([[[0], [4095]]]), lambda p: p * 16 + p // 256
        content = tiff(np.uint8([[[0], [15], [255]]]), [*tags, (256, 3, [2])])
    (tmp_path / "a.tif").write_bytes(content)
    np.testing.assert_array_equal(images.read(tmp_path / "a.tif").pixels[:, :, :1], convert(grey))


@pytest.mark.parametrize("name", ["a.png", "a.tif"])
def test_16_bit_colour_keeps_its_metadata_and_is_turned_once(tmp_path, name):
    stored = noise(bits=16)
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = 6, "Maker"
    exif.get_ifd(0x8769)[0x829D] = 2.8  # FNumber
    if name == "a.png":
        # As Photoshop does, with the EXIF behind the pixels.
        content = png(stored, [(b"iCCP", b"name\0\0" + zlib.compress(PROFILE)),
                               (b"pHYs", struct.pack(">IIB", 11811, 11811, 1))],
                      [(b"eXIf", exif.tobytes()[6:])])
    else:
        content = tiff(stored, [(274, 3, [6]), (271, 2, b"Maker\0"), (282, 5, [300, 1]),
                                (283, 5, [300, 1]), (296, 3, [2]), (34675, 1, PROFILE)])
    (tmp_path / name).write_bytes(content)
    picture = images.read(tmp_path / name)
    np.testing.assert_array_equal(picture.pixels, np.rot90(stored, -1))
    for out in ("b.png", "b.tif"):
        images.write(tmp_path / out, picture)
        with Image.open(tmp_path / out) as image:
            image.load()
            assert image.info["icc_profile"] == PROFILE
            assert [float(value) for value in image.info["dpi"]] == pytest.approx([300, 300], 1e-4)
            kept = image.getexif()
            assert kept.get(0x0112, 1) == 1 and kept[0x010F] == "Maker"
            if name == "a.png":
                assert kept.get_ifd(0x8769)[0x829D] == 2.8
        again = images.read(tmp_path / out)
        np.testing.assert_array_equal(again.pixels, picture.pixels)
        assert again.icc == PROFILE and again.dpi == pytest.approx((300, 300), 1e-4)


@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA", "LA"])
def test_a_cameras_exif_goes_into_a_tiff(tmp_path, mode):
    exif = Image.Exif()
    exif[0x010F] = "Maker"
    exif.get_ifd(0x8769).update({0x829D: 2.8, 0x9003: "2020:01:02 03:04:05", 0x927C: b"notes"})
    exif.get_ifd(0x8825)[1] = "N"
    file = io.BytesIO()
    Image.fromarray(noise()).convert(mode).save(file, "PNG", exif=exif)
    picture = images.read(file)
    images.write(tmp_path / "a.tif", picture)
    again = images.read(tmp_path / "a.tif")
    np.testing.assert_array_equal(again.pixels, picture.pixels)
    np.testing.assert_array_equal(again.alpha, picture.alpha)
    with Image.open(tmp_path / "a.tif") as image:
        assert image.mode == mode and image.info["compression"] == "tiff_adobe_deflate"
    kept = Image.Exif()
    kept.load(again.exif)
    assert kept[0x010F] == "Maker" and kept.get_ifd(0x8825)[1] == "N"
    assert {tag: kept.get_ifd(0x8769)[tag] for tag in (0x829D, 0x9003, 0x927C)} == {
        0x829D: 2.8, 0x9003: "2020:01:02 03:04:05", 0x927C: b"notes"}


def deep_avif():
    file = io.BytesIO()
    Image.fromarray(gradient(16, 16)).save(file, "AVIF")
    data = bytearray(file.getvalue())
    data[data.index(b"av1C") + 6] |= 0x40
    return bytes(data)


@pytest.mark.parametrize("content", [
    b"P6 2 2 65535\n" + bytes(24), tiff(noise(channels=4, bits=16), [(262, 3, [5])]),
    tiff(noise(bits=16), [(284, 3, [2])]), deep_avif()])
def test_bits_that_pillow_would_cut_are_refused(tmp_path, content):
    (tmp_path / "a.png").write_bytes(content)
    with pytest.raises(InputError, match="bits a channel.*only 8 could be kept.*convert"):
        images.read(tmp_path / "a.png")


def test_an_unusual_tiff_is_called_that(tmp_path):
    (tmp_path / "a.tif").write_bytes(tiff(noise(channels=2, bits=16)))
    with pytest.raises(InputError, match="a.tif: a TIFF whose pixels are stored in an unusual"):
        images.read(tmp_path / "a.tif")


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


UPRIGHT = XMP.replace(b'"6"', b'"1"')


@pytest.mark.parametrize("name", ["a.png", "deep.png", "a.tif", "a.jpg", "a.webp", "a.avif",
                                  "a.gif", "a.bmp"])
def test_xmp_and_text_go_where_they_can_be_held(tmp_path, name):
    if name == "deep.png":
        (tmp_path / "in.png").write_bytes(png(noise(bits=16), [c[:2] for c in said().chunks]))
    else:
        Image.fromarray(noise()).save(tmp_path / "in.png", pnginfo=said())
    picture = images.read(tmp_path / "in.png")
    assert picture.pixels.shape == (19, 13, 3)  # the XMP alone says that it is turned
    images.write(tmp_path / name, picture)
    with Image.open(tmp_path / name) as image:
        image.load()
        holds = name not in ("a.gif", "a.bmp")
        assert image.info.get("xmp") == (UPRIGHT if holds else None)
        texts = {key: value for key, value in getattr(image, "text", {}).items()
                 if key != "XML:com.adobe.xmp"}
        assert texts == (TEXT if name.endswith("png") else {})
    again = images.read(tmp_path / name)  # not turned a second time
    assert again.pixels.shape == picture.pixels.shape and again.text == texts
    assert again.xmp == (UPRIGHT if holds else b"")


def test_xmp_that_is_stale_damaged_or_too_long(tmp_path):
    thumbnail = b"<xmp:Thumbnails><rdf:Alt>old\npicture</rdf:Alt></xmp:Thumbnails>"
    cases = [(UPRIGHT + thumbnail + b" ", UPRIGHT + b" "), (UPRIGHT + b"\0", UPRIGHT),
             (b"<tiff:Orientation>8</tiff:Orientation>", b"<tiff:Orientation>1</tiff:Orientation>"),
             (b"\xff\xfe<\0", b"")]
    for packet, kept in cases:
        file = io.BytesIO()
        Image.new("RGB", (3, 2)).save(file, "JPEG", xmp=packet)
        assert images.read(file).xmp == kept
    long = dataclasses.replace(images.Picture(noise()), xmp=UPRIGHT + b" " * 70000)
    assert images.read(io.BytesIO(images.encode(long, "JPEG"))).xmp == b""  # JPEG has no room
    assert images.read(io.BytesIO(images.encode(long, "PNG"))).xmp == long.xmp


def test_long_text_can_be_read_again():
    picture = images.Picture(noise(), text={"workflow": "node " * 300_000})
    for each in (picture, dataclasses.replace(picture, pixels=noise(bits=16))):
        assert images.read(io.BytesIO(images.encode(each, "PNG"))).text == picture.text


@pytest.mark.parametrize("key", ["exif", "APP1"])
def test_profiles_in_hexadecimal_text_become_what_they_are(tmp_path, key):
    def digits(data):
        return f"\nname\n{len(data):8}\n" + data.hex()

    exif, info = Image.Exif(), PngImagePlugin.PngInfo()
    exif[0x0112], exif[0x010F] = 6, "Maker"
    info.add_text(f"Raw profile type {key}", digits(exif.tobytes()))
    info.add_text("Raw profile type xmp", digits(XMP))
    info.add_text("Raw profile type iptc", "kept")
    Image.fromarray(noise()).save(tmp_path / "a.png", pnginfo=info)
    picture = images.read(tmp_path / "a.png")
    assert picture.text == {"Raw profile type iptc": "kept"} and picture.xmp == UPRIGHT
    images.write(tmp_path / "b.png", picture)
    with Image.open(tmp_path / "b.png") as image:
        assert image.getexif()[0x010F] == "Maker" and image.getexif()[0x0112] == 1
        assert image.size == picture.pixels.shape[1::-1]


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
                                 ("a.webp", dataclasses.replace(deep, mode="RGB"), "16 bits"),
                                 ("a.heic", alpha, "not written; write a .jpg"),
                                 ("a.NEF", alpha, "not written; write a .tif")):
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


@pytest.mark.parametrize("links", [True, False])
def test_what_came_while_a_file_was_written_stays(tmp_path, monkeypatch, links):
    def none(*_):
        raise PermissionError(1, "Operation not permitted")

    if not links:  # as on FAT
        monkeypatch.setattr(os, "link", none)
    path = tmp_path / "a.png"
    images.write(path, images.Picture(gradient()), replace=False)
    whole = path.read_bytes()
    path.unlink()
    with pytest.raises(InputError) as error, images.atomic(path, replace=False) as file:
        file.write(b"ours")
        path.write_bytes(b"theirs")
    assert str(error.value) == f"{path} exists already; --overwrite replaces it"
    assert path.read_bytes() == b"theirs" and list(tmp_path.iterdir()) == [path]
    with pytest.raises(InputError, match="a.png exists already"):
        images.write(path, images.Picture(gradient()), replace=False)
    images.write(path, images.Picture(gradient()))
    assert path.read_bytes() == whole and list(tmp_path.iterdir()) == [path]
    path.unlink()
    path.symlink_to(tmp_path / "nothing")  # a link is something, wherever it leads
    with pytest.raises(InputError, match="a.png exists already"):
        images.write(path, images.Picture(gradient()), replace=False)
    if not links:
        monkeypatch.setattr(os, "replace", none)
        with pytest.raises(InputError, match="Operation not permitted"):
            images.write(tmp_path / "b.png", images.Picture(gradient()), replace=False)
        assert not (tmp_path / "b.png").exists()


def test_a_name_as_long_as_the_system_allows(tmp_path):
    path = tmp_path / ("n" * 251 + ".png")
    for value in (1, 2):
        images.write(path, images.Picture(np.full((2, 3, 3), value, np.uint8)))
        assert images.read(path).pixels[0, 0, 0] == value and list(tmp_path.iterdir()) == [path]
    with pytest.raises(InputError, match="cannot be written .File name too long.$"):
        images.write(tmp_path / ("n" * 252 + ".png"), images.Picture(noise()))


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


def test_max_pixels_is_checked_before_anything_is_decoded():
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 100, 50, 16, 2, 0, 0, 0))
    body = chunk(b"IDAT", b"no pixels")
    bomb = io.BytesIO(b"\x89PNG\r\n\x1a\n" + header + body + chunk(b"IEND", b""))
    with pytest.raises(InputError, match="bomb.png: more than 4,999 pixels"):
        images.read(bomb, "bomb.png", max_pixels=4999)
    with pytest.raises(InputError, match="damaged"):  # allowed, so tried
        images.read(bomb, "bomb.png", max_pixels=5000)


def test_a_hundred_megapixels_are_allowed_and_three_hundred_are_not():
    images._check_size(12000, 8500, "a.png", None)
    with pytest.raises(InputError, match="a.png: more than 178,956,970 pixels"):
        images._check_size(20000, 15000, "a.png", None)


@pytest.mark.parametrize("form", ["PNG", "JPEG", "TIFF"])
def test_streams(tmp_path, form):
    picture = images.Picture(noise())
    data = images.encode(picture, form)
    images.write(tmp_path / f"a.{form.lower()}", picture)
    assert (tmp_path / f"a.{form.lower()}").read_bytes() == data
    stream = io.BytesIO(data)
    stream.seek(9)
    from_stream = images.read(stream, "upload")
    assert from_stream.format == form and not stream.closed
    np.testing.assert_array_equal(from_stream.pixels,
                                  images.read(tmp_path / f"a.{form.lower()}").pixels)


def test_a_pipe_is_read():
    data = images.encode(images.Picture(noise(bits=16)), "PNG")
    out, into = os.pipe()
    with os.fdopen(out, "rb") as reading, os.fdopen(into, "wb") as writing:
        writer = threading.Thread(target=lambda: (writing.write(data), writing.close()))
        writer.start()
        picture = images.read(reading, "<stdin>")
        writer.join()
    np.testing.assert_array_equal(picture.pixels, noise(bits=16))


def test_errors_of_streams_say_the_name_that_was_given(tmp_path):
    for content, match in ((b"", "is empty"), (b"hello", "not a picture")):
        with pytest.raises(InputError, match=f"^upload 3: .*{match}"):
            images.read(io.BytesIO(content), "upload 3")
    alpha = images.Picture(noise(), noise()[:, :, 0], "RGBA")
    with pytest.raises(InputError, match="^upload 3: JPEG cannot hold"):
        images.encode(alpha, "JPEG", "upload 3")
    with pytest.raises(InputError, match='unknown picture format "PGN".*"PNG"'):
        images.encode(alpha, "PGN")
    with pytest.raises(InputError, match="is a folder"):
        images.read(tmp_path)


def test_names_of_results():
    assert [images.output_name(name) for name in ("a.b.HEIC", "a.nef", "sub/a.DNG", "a.PNG", "a")
            ] == ["a.b.jpg", "a.tif", "sub/a.tif", "a.PNG", "a"]
    assert {".heic", ".cr3", ".jpg", ".avif"} <= images.READABLE
    assert not set(images.FORMATS) & (images.HEIF | images.RAW)


def test_what_needs_an_extra_says_which(tmp_path, monkeypatch):
    for module in ("pi_heif", "rawpy"):
        monkeypatch.setitem(sys.modules, module, None)  # as if it were not installed
    (tmp_path / "a.heic").write_bytes(HEIC)
    (tmp_path / "renamed.jpg").write_bytes(HEIC)
    (tmp_path / "a.NEF").write_bytes(b"anything")
    (tmp_path / "camera.tif").write_bytes(dng())
    for name, extra in (("a.heic", "heif"), ("renamed.jpg", "heif"), ("a.NEF", "raw"),
                        ("camera.tif", "raw")):
        with pytest.raises(InputError, match=rf"{name}: .*pip install 'lljax\[{extra}\]'"):
            images.read(tmp_path / name)
    Image.fromarray(noise()).save(tmp_path / "a.cr2", "PNG")  # the content decides
    np.testing.assert_array_equal(images.read(tmp_path / "a.cr2").pixels, noise())


def test_heic(tmp_path):
    pytest.importorskip("pi_heif", reason="pip install 'lljax[heif]'")
    (tmp_path / "a.heic").write_bytes(HEIC)
    picture = images.read(tmp_path / "a.heic")
    assert picture.pixels.shape == (64, 48, 3) and picture.format == "JPEG"
    for y, x, colour in ((5, 5, (40, 40, 200)), (5, 42, (200, 40, 40)),
                         (58, 5, (220, 220, 220)), (58, 42, (40, 200, 40))):
        np.testing.assert_allclose(picture.pixels[y, x], colour, atol=3)
    images.write(tmp_path / images.output_name("a.heic"), picture)
    with Image.open(tmp_path / "a.jpg") as image:
        assert image.format == "JPEG" and image.size == (48, 64)
        assert image.getexif()[0x010F] == "Maker" and image.getexif()[0x0112] == 1
    with pytest.raises(InputError, match="upload.heic: more than 3,071 pixels"):
        images.read(io.BytesIO(HEIC), "upload.heic", max_pixels=3071)
    sdr, at = bytearray(HEIC), HEIC.index(b"nclx")
    for transfer, kind in ((16, "PQ"), (18, "HLG")):
        struct.pack_into(">H", sdr, at + 6, transfer)
        with pytest.raises(InputError, match=f"a.heic: an HDR picture .{kind}"):
            images.read(io.BytesIO(bytes(sdr)), "a.heic")


def test_raw(tmp_path):
    pytest.importorskip("rawpy", reason="pip install 'lljax[raw]'")
    for level in (0.002, 0.05, 0.5):
        picture = images.read(io.BytesIO(dng(level)), "a.dng")
        assert picture.pixels.shape == (48, 64, 3) and picture.pixels.dtype == np.uint16
        # Neutral by the camera's white balance, as dark as it was taken, in sRGB's curve.
        srgb = 12.92 * level if level <= 0.0031308 else 1.055 * level ** (1 / 2.4) - 0.055
        np.testing.assert_allclose(picture.pixels[8:-8, 8:-8] / 65535, srgb, rtol=0.02)
    images.write(tmp_path / images.output_name("a.dng"), picture)
    again = images.read(tmp_path / "a.tif")
    np.testing.assert_array_equal(again.pixels, picture.pixels)
    with Image.open(tmp_path / "a.tif") as image:
        assert image.getexif()[0x0110] == "Model"
    for name in ("a.dng", "camera.tif"):
        with pytest.raises(InputError, match=f"{name}: more than 3,071 pixels"):
            images.read(io.BytesIO(dng()), name, max_pixels=3071)
    with pytest.raises(InputError, match="a.nef: cannot be read"):
        images.read(io.BytesIO(dng()[:-3000]), "a.nef")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("ugly")
    return path, ugly(path)


def test_every_picture_of_the_ugly_folder(folder, tmp_path):
    source, expected = folder
    names = {name.replace(os.sep, "/"): file for file, name in images.find([source])}
    assert set(names) == set(expected)
    for name, file in names.items():
        wanted = expected[name]
        if wanted.error:
            with pytest.raises(InputError, match=wanted.error) as caught:
                images.read(file)
            assert file in str(caught.value) and "\n" not in str(caught.value)
            continue
        picture = images.read(file)
        target = tmp_path / os.path.basename(images.output_name(name))
        images.write(target, picture)
        again = images.read(target)
        assert target.suffix.lower() in images.FORMATS, name
        assert again.format == wanted.form == images.FORMATS[target.suffix.lower()], name
        for one in (picture, again):
            assert one.pixels.shape == (*wanted.size[::-1], 3), name
            assert (one.grey, one.alpha is not None) == (wanted.grey, wanted.alpha), name
            assert one.pixels.dtype == f"uint{wanted.bits}", name
        if wanted.lossless:
            np.testing.assert_array_equal(again.pixels, picture.pixels, name)
        else:
            assert abs(again.pixels.astype(int) - picture.pixels).mean() < 8, name
        np.testing.assert_array_equal(again.alpha, picture.alpha, name)
        assert (again.icc, again.exif) == (picture.icc, picture.exif), name
        assert (again.xmp, again.text) == (picture.xmp, picture.text), name
        if picture.dpi and min(picture.dpi) > 1:
            np.testing.assert_allclose(again.dpi, picture.dpi, rtol=1e-3)


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")  # Pillow notes what is damaged
def test_damage_of_any_kind_is_one_line(folder):
    source, expected = folder
    rng = np.random.default_rng(0)
    refused = 0
    for name in sorted(set(expected) - {"bomb.png", "empty.bmp"}):
        whole = (source / name).read_bytes()
        for cut in (len(whole) // 3, len(whole) - 5, None):
            data = bytearray(whole[:cut])
            data[rng.integers(min(len(data), 300))] ^= 1 << rng.integers(8)
            try:
                images.read(io.BytesIO(bytes(data)), name, max_pixels=10**6)
            except InputError as error:
                assert str(error).startswith(name) and "\n" not in str(error)
                refused += 1
    assert refused > len(expected)


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")  # Pillow notes what is damaged
@pytest.mark.parametrize("content", [
    tiff(noise(), [(256, 3, [0])]), tiff(noise())[:30], HEIC[:300]])
def test_headers_that_make_no_sense_are_called_damaged(content):
    if content.startswith(HEIC[:12]):
        pytest.importorskip("pi_heif", reason="pip install 'lljax[heif]'")
    with pytest.raises(InputError, match="^a.xyz: .*damaged"):
        images.read(io.BytesIO(content), "a.xyz")


def test_the_turned_pictures_of_the_ugly_folder_are_turned(folder):
    source, _ = folder
    upright = images.read(source / "turned_1.jpg").pixels.astype(int)
    for orientation, turned in ((2, upright[:, ::-1]), (3, upright[::-1, ::-1]),
                                (4, upright[::-1]), (5, upright.swapaxes(0, 1)),
                                (6, upright[::-1].swapaxes(0, 1)),
                                (7, upright[::-1, ::-1].swapaxes(0, 1)),
                                (8, upright[:, ::-1].swapaxes(0, 1))):
        picture = images.read(source / f"turned_{orientation}.jpg")
        np.testing.assert_array_equal(picture.pixels, turned)
        assert picture.icc == PROFILE and picture.dpi == (300, 300)


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
    for name in ("b.JPG", "a.png", "notes.txt", ".hidden.png", "sub/c.tiff", ".git/d.png",
                 "sub/e.CR3"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    names = [name for _, name in images.find([tmp_path])]
    assert names == ["a.png", "b.JPG", os.path.join("sub", "c.tiff"),
                     os.path.join("sub", "e.CR3")]
    assert [name for _, name in images.find([tmp_path], recursive=False)] == ["a.png", "b.JPG"]
    assert images.find([tmp_path / "notes.txt"]) == [(str(tmp_path / "notes.txt"), "notes.txt")]
    with pytest.raises(InputError, match="nowhere"):
        images.find([tmp_path, tmp_path / "nowhere"])


def test_search_tells_what_it_leaves(tmp_path, monkeypatch):
    for name in ("a.png", "clip.MOV", "notes.txt", ".hidden.txt", "shut/b.png", "sub/c.png",
                 "sub/none"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    scandir = os.scandir

    def refuse(path):
        if os.path.basename(path) == "shut":
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)  # the tests may run as root, who may read all
    found = images.search([tmp_path])
    assert [name for _, name in found.pictures] == ["a.png", os.path.join("sub", "c.png")]
    assert found.videos == [str(tmp_path / "clip.MOV")]
    assert found.others == [str(tmp_path / "notes.txt"), str(tmp_path / "sub" / "none")]
    assert found.unread == [(str(tmp_path / "shut"), "Permission denied")]
    with pytest.raises(InputError, match="shut: cannot be searched .Permission denied.; change"):
        images.find([tmp_path])


def test_a_link_to_nothing_is_called_that(tmp_path):
    (tmp_path / "a.png").symlink_to("gone.png")
    for function in (images.read, lambda path: images.find([path])):
        with pytest.raises(InputError, match="a.png: a link to gone.png, which does not exist"):
            function(tmp_path / "a.png")


def test_pad_and_crop():
    pixels = np.arange(6).reshape(2, 3, 1)
    padded = images.pad(pixels, 1, 2)
    np.testing.assert_array_equal(padded[:, :, 0], [[0, 1, 2, 1, 0], [3, 4, 5, 4, 3],
                                                    [0, 1, 2, 1, 0]])
    np.testing.assert_array_equal(images.crop(padded, 2, 3), pixels)
    np.testing.assert_array_equal(images.pad(pixels, 2, 0)[:, 0, 0], [0, 3, 3, 3])  # too short
    np.testing.assert_array_equal(images.pad(pixels[:1, :1], 3, 3), np.zeros((4, 4, 1)))


def test_a_broken_exif_block_does_not_cost_the_picture(tmp_path):
    head = b"Exif\0\0II*\0"
    for number, block in enumerate((
            head + struct.pack("<IH", 8, 60000),  # more entries than bytes
            head + struct.pack("<I", 5000),  # a directory behind the end
            head[:-2])):
        path = tmp_path / f"{number}.jpg"
        Image.new("RGB", (20, 10), (30, 20, 10)).save(path, exif=block)
        picture = images.read(path)
        assert picture.pixels.shape == (10, 20, 3) and picture.exif == b""
        images.write(tmp_path / "out.jpg", picture)
