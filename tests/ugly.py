"""A folder of the pictures that users have, made by hand: no code under test writes them."""

import base64
import dataclasses
import importlib.util
import pathlib
import struct
import zlib

import numpy as np
from PIL import Image, PngImagePlugin

# Four colours in quarters, 64 x 48 pixels and turned by 90 degrees to 48 x 64: red is at the top
# right. Made for this file.
HEIC = base64.b64decode("""
AAAAHGZ0eXBoZWl4AAAAAG1pZjFoZWl4bWlhZgAAAcltZXRhAAAAAAAAACFoZGxyAAAAAAAAAABwaWN0AAAAAAAAAAAAAAAA
AAAAADRpbG9jAAAAAERAAAIAAQAAAAAB7QABAAAAAAAAAMYAAgAAAAACswABAAAAAAAAADYAAAA4aWluZgAAAAAAAgAAABVp
bmZlAgAAAAABAABodmMxAAAAABVpbmZlAgAAAQACAABFeGlmAAAAAA5waXRtAAAAAAABAAABCGlwcnAAAADnaXBjbwAAAHdo
dmNDAQQIAAAAnjgAAAAAHvAA/P/4+AAADwNgAAEAF0ABDAH//wQIAAADAJ44AAADAAAeugJAYQABACpCAQEECAAAAwCeOAAA
AwAAHpAEECCy3VyU1zcBDQYEAAADAGQAAAMABCBiAAEACEQBwXMYMAiQAAAAE2NvbHJuY2x4AAEADQAGgAAAABRpc3BlAAAA
AAAAAEAAAABAAAAAKGNsYXAAAABAAAAAAQAAADAAAAABAAAAAAAAAAL////wAAAAAgAAABBwaXhpAAAAAAMICAgAAAAJaXJv
dAMAAAAZaXBtYQAAAAAAAAABAAEGgQIDBYSGAAAAGmlyZWYAAAAAAAAADmNkc2MAAgABAAEAAAEEbWRhdAAAAMIoAa8J4CM4
R//Vz//zIuh8U3vFV35Te/7Y6u8Pj/9vmU+U9eCrYe2JH/EEf/OIjuW0rHNMddrrwrT20U1/ZeXqiG6KW+JZHNZ3Heu5d5J9
gAQ/Gp7H81yO8KbIGJ5oo09FTJOMVsgYFsTZymyvSO+AzFEsExUA9sCHDP+4OtBu/kflIVWCZMSsDY5vxf3Xu1CuJRqM+fyb
4JZepR1uqpz01O6dX82sPzqZT1q9ZHTxWD2Fy59a+Iv2/s+nw4cP/RwBNwAAAAZFeGlmAABNTQAqAAAACAACAQ8AAgAAAAYA
AAAmARIAAwAAAAEABgAAAAAAAE1ha2VyAA==
""")
PROFILE = b"not a real profile, carried as it is"
XMP = b"""<?xpacket begin="" id="W5M0MpCehiHzreSzNTczkc9d"?><x:xmpmeta xmlns:x="adobe:ns:meta/">
<rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#"><rdf:Description
 xmlns:tiff="http://ns.adobe.com/tiff/1.0/" tiff:Orientation="6" tiff:Make="Maker"/></rdf:RDF>
</x:xmpmeta><?xpacket end="w"?>"""
TEXT = {"Title": "a night", "Author": "Søren", "Comment": "夜"}


@dataclasses.dataclass(frozen=True)
class Expected:
    """What becomes of a file of the folder.

    Attributes:
      form: Pillow format of the result.
      size: (width, height) of the result.
      grey: whether it is grey.
      alpha: whether it has an alpha channel.
      bits: a channel.
      lossless: whether it holds the very pixels that were read.
      error: if it cannot be read: a regular expression of what the error says.
    """

    form: str = "PNG"
    size: tuple[int, int] = (19, 13)
    grey: bool = False
    alpha: bool = False
    bits: int = 8
    lossless: bool = True
    error: str | None = None


def noise(width=19, height=13, channels=3, bits=8):
    """Random pixels [H, W, C]; dark, so that enhancing them shows."""
    rng = np.random.default_rng(100 * width + 10 * height + channels)
    return rng.integers(0, 90 << (bits - 8), (height, width, channels)).astype(f"uint{bits}")


def chunk(kind, data):
    """A chunk of a PNG."""
    return (struct.pack(">I", len(data)) + kind + data
            + struct.pack(">I", zlib.crc32(kind + data)))


def said():
    """`TEXT` and `XMP` as a PNG's chunks."""
    info = PngImagePlugin.PngInfo()
    for key, value in TEXT.items():
        info.add_text(key, value)
    info.add_itxt("XML:com.adobe.xmp", XMP)
    return info


def _filtered(rows, step):
    """A PNG's filtered rows, of all five kinds in turn (None, Sub, Up, Average, Paeth)."""
    above, out = bytes(len(rows[0])), b""
    for number, row in enumerate(rows):
        kind = number % 5
        left, corner = bytes(step) + row, bytes(step) + above
        line = []
        for at, value in enumerate(row):
            a, b, c = left[at], above[at], corner[at]
            distance = {a: abs(b - c)}  # Paeth: the nearest to a + b - c; a before b before c
            for other, far in ((b, abs(a - c)), (c, abs(a + b - 2 * c))):
                distance.setdefault(other, far)
            guess = (0, a, b, (a + b) // 2, min(distance, key=distance.get))[kind]
            line.append((value - guess) % 256)
        out += bytes([kind, *line])
        above = row
    return out


def png(pixels, before=(), after=(), interlaced=False):
    """A 16-bit PNG of uint16 [H, W, 1 to 4].

    Args:
      pixels: grey, grey + alpha, RGB or RGBA.
      before: (kind, data) of the chunks before the pixels.
      after: those behind them.
      interlaced: whether in the seven passes of Adam7.
    """
    height, width, channels = pixels.shape
    passes = [(0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2),
              (0, 1, 1, 2)] if interlaced else [(0, 0, 1, 1)]
    data = b""
    for x, y, across, down in passes:
        part = pixels[y::down, x::across].astype(">u2")
        if part.size:
            data += _filtered([row.tobytes() for row in part], 2 * channels)
    header = struct.pack(">IIBBBBB", width, height, 16, (0, 4, 2, 6)[channels - 1], 0, 0,
                         interlaced)
    chunks = [(b"IHDR", header), *before, (b"IDAT", zlib.compress(data)), *after, (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*each) for each in chunks)


def tiff(pixels, tags=(), order="<"):
    """An uncompressed TIFF in one strip of uint8 or uint16 [H, W, C].

    Args:
      pixels: grey, RGB, or RGB with something more.
      tags: (number, type, values) of further tags, or in place of the usual ones; types 1
        and 2 bytes, 3 uint16, 4 uint32, 5 pairs of uint32, 10 pairs of int32.
      order: "<" little-endian, ">" big-endian.
    """
    height, width, channels = pixels.shape
    bits = pixels.itemsize * 8
    entries = {256: (3, [width]), 257: (3, [height]), 258: (3, [bits] * channels), 259: (3, [1]),
               262: (3, [1 if channels == 1 else 2]), 273: (4, [0]), 277: (3, [channels]),
               278: (3, [height]), 279: (4, [pixels.nbytes])}
    entries |= {number: (kind, list(values)) for number, kind, values in tags}
    body, listed = b"", []
    start = 8 + 2 + 12 * len(entries) + 4
    size = sum(len(_packed(order, *entry)) + 1 for entry in entries.values())
    entries[273] = (4, [start + size])
    for number, (kind, values) in sorted(entries.items()):
        data = _packed(order, kind, values)
        count = len(values) // 2 if kind in (5, 10) else len(values)
        place = data.ljust(4, b"\0")
        if len(data) > 4:
            place = struct.pack(order + "I", start + len(body))
            body += data + b"\0" * (len(data) % 2)
        listed.append(struct.pack(order + "HHI", number, kind, count) + place)
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(order + "I", 8)
    head += struct.pack(order + "H", len(listed)) + b"".join(listed) + bytes(4)
    return (head + body).ljust(start + size, b"\0") + pixels.astype(
        pixels.dtype.newbyteorder(order)).tobytes()


def _packed(order, kind, values):
    code = {1: "B", 2: "B", 3: "H", 4: "I", 5: "I", 10: "i"}[kind]
    return struct.pack(f"{order}{len(values)}{code}", *values)


def dng(level=0.05, size=(64, 48)):
    """A RAW: a neutral grey of that linear level under light that a camera sees as reddish."""
    neutral = np.float64([0.8, 1.0, 0.5])  # what the camera sees of white
    sensor = np.empty((size[1], size[0], 1), np.uint16)
    for row, column, colour in ((0, 0, 0), (0, 1, 1), (1, 0, 1), (1, 1, 2)):
        sensor[row::2, column::2] = round(65535 * level * neutral[colour])
    matrix = [round(10000 * value) for value in (  # XYZ -> sRGB's primaries
        3.2405, -1.5371, -0.4985, -0.9693, 1.8760, 0.0416, 0.0556, -0.2040, 1.0572)]
    fractions = [part for value in matrix for part in (value, 10000)]
    return tiff(sensor, [
        (254, 4, [0]), (262, 3, [32803]), (271, 2, b"Maker\0"), (272, 2, b"Model\0"),
        (33421, 3, [2, 2]), (33422, 1, [0, 1, 1, 2]), (50706, 1, [1, 4, 0, 0]),
        (50708, 2, b"Maker Model\0"), (50717, 4, [65535]), (50721, 10, fractions),
        (50728, 5, [part for value in neutral for part in (round(1000 * value), 1000)]),
        (50778, 3, [21])])


def ugly(folder) -> dict[str, Expected]:
    """Fills a folder.

    Args:
      folder: an empty one.

    Returns:
      What becomes of each picture in it, by its name (with "/" for sub-folders).
    """
    folder = pathlib.Path(folder)
    (folder / "sub" / "deeper").mkdir(parents=True)
    found = {}

    def save(name, image, expected, **options):
        image.save(folder / name, **options)
        found[name] = expected

    def put(name, content, expected):
        (folder / name).write_bytes(content)
        found[name] = expected

    rgb = Image.fromarray(noise())
    for width, height in ((1, 1), (1, 67), (67, 1), (61, 97)):
        save(f"{width}x{height}.png", Image.fromarray(noise(width, height)),
             Expected(size=(width, height)))
    save("dot.bmp", Image.fromarray(noise(1, 1)), Expected("BMP", (1, 1)))
    save("line.jpg", Image.fromarray(noise(67, 1)), Expected("JPEG", (67, 1), lossless=False))

    save("grey.jpg", rgb.convert("L"), Expected("JPEG", grey=True, lossless=False))
    save("grey.png", rgb.convert("L"), Expected(grey=True))
    save("bits.png", rgb.convert("1"), Expected(grey=True))
    save("grey_alpha.png", Image.fromarray(noise(channels=2)), Expected(grey=True, alpha=True))
    save("rgba.png", Image.fromarray(noise(channels=4)), Expected(alpha=True))
    save("rgba.tif", Image.fromarray(noise(channels=4)), Expected("TIFF", alpha=True))
    save("palette.png", rgb.convert("P"), Expected())
    save("palette_clear.png", rgb.convert("P"), Expected(alpha=True), transparency=3)
    save("palette.gif", rgb.convert("P"), Expected("GIF", lossless=False))
    save("cmyk.jpg", rgb.convert("CMYK"), Expected("JPEG", lossless=False))
    save("sub/deeper/cmyk.tif", rgb.convert("CMYK"), Expected("TIFF"))
    save("plain.webp", rgb, Expected("WEBP", lossless=False))
    save("plain.avif", rgb, Expected("AVIF", lossless=False))
    save("plain.ppm", rgb, Expected("PPM"))
    save("UPPER.JPG", rgb, Expected("JPEG", lossless=False))
    save("UPPER.TIFF", rgb, Expected("TIFF"))

    for channels, name in enumerate(("grey", "grey_alpha", "rgb", "rgba"), 1):
        expected = Expected(grey=channels < 3, alpha=channels in (2, 4), bits=16)
        put(f"deep_{name}.png", png(noise(channels=channels, bits=16)), expected)
    for name, channels, order, tags in (("grey", 1, "<", ()), ("rgb", 3, "<", ()),
                                        ("rgb_big_endian", 3, ">", ()),
                                        ("rgba", 4, "<", [(338, 3, [2])])):
        put(f"sub/deep_{name}.tif", tiff(noise(channels=channels, bits=16), tags, order),
            Expected("TIFF", grey=channels == 1, alpha=channels == 4, bits=16))

    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[0x0112], exif[0x010F] = orientation, "Maker"
        size = (13, 19) if orientation > 4 else (19, 13)
        save(f"turned_{orientation}.jpg", rgb, Expected("JPEG", size, lossless=False),
             exif=exif, icc_profile=PROFILE, dpi=(300, 300))

    # The XMP says that they are turned, and no EXIF says anything.
    for form, suffix in (("JPEG", "jpg"), ("WEBP", "webp"), ("AVIF", "avif")):
        save(f"said.{suffix}", rgb, Expected(form, (13, 19), lossless=False), xmp=XMP)
    save("said.png", rgb, Expected(size=(13, 19)), pnginfo=said())
    put("said.tif", tiff(noise(), [(700, 1, XMP)]), Expected("TIFF", (13, 19)))
    put("deep_said.png", png(noise(bits=16), [part[:2] for part in said().chunks]),
        Expected(size=(13, 19), bits=16))

    save("really_png.jpg", rgb, Expected("JPEG", lossless=False), format="PNG")
    save("really_jpeg.png", rgb, Expected(), format="JPEG")

    has_heif, has_raw = (importlib.util.find_spec(name) for name in ("pi_heif", "rawpy"))
    put("phone.heic", HEIC, Expected("JPEG", (48, 64), lossless=False,
                                     error=None if has_heif else "lljax.heif"))
    put("camera.DNG", dng(), Expected("TIFF", (64, 48), bits=16,
                                      error=None if has_raw else "lljax.raw"))
    put("fake.heic", HEIC[:40], Expected(error="damaged" if has_heif else "lljax.heif"))
    put("fake.nef", b"no picture" * 1000,
        Expected(error="not a RAW file" if has_raw else "lljax.raw"))

    rgb.save(folder / "whole.jpg")
    put("cut.jpg", (folder / "whole.jpg").read_bytes()[:-60], Expected(error="damaged"))
    (folder / "whole.jpg").unlink()
    put("cut.png", png(noise(bits=16))[:-80], Expected(error="damaged"))
    put("text.png", b"no picture", Expected(error="not a picture"))
    put("empty.bmp", b"", Expected(error="is empty"))
    put("bomb.png", b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", struct.pack(">IIBBBBB", 20000, 15000, 8, 2, 0, 0, 0))
        + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b""),
        Expected(error="more than 178,956,970 pixels"))
    save("float.tif", Image.fromarray(np.ones((2, 2), np.float32)), Expected(error="32 bits"))
    save("moving.gif", rgb.convert("L"), Expected(error="2 frames"), save_all=True,
         append_images=[Image.new("L", rgb.size)])
    put("sub/planes.tif", tiff(noise(bits=16), [(284, 3, [2])]), Expected(error="separate planes"))

    (folder / "notes.txt").write_text("not an input")
    (folder / "sub" / "clip.MP4").write_bytes(b"not an input: its name is a video's")
    (folder / ".hidden.png").write_text("not an input")
    return found
