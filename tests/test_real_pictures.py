"""What a user does, on real dark photographs: folders, and a clip made of one of them."""

import os

import numpy as np
import pytest
from PIL import Image

from lljax import cli
from tests.test_video import ffmpeg as write
from tests.test_video import needs_ffmpeg, pixels, probe, sound, times

COUNT, RATE, HEIGHT, WIDTH = 75, 25, 96, 128  # 3 s


def pictures(folder):
    return {name: np.asarray(Image.open(os.path.join(folder, name)))
            for name in sorted(os.listdir(folder))}


@pytest.mark.parametrize("name", ["LIME", "DICM"])
def test_a_folder_of_dark_photographs(shared, tmp_path, capsys, name):
    source = shared / "data" / name
    if not source.is_dir():
        pytest.skip(f"{source} is absent")
    assert cli.main(["lljax", "enhance", str(source), "-o", str(tmp_path)]) == 0
    before, after = pictures(source), pictures(tmp_path)
    assert f"{len(before)} enhanced, 0 failed" in capsys.readouterr().out
    assert before.keys() == after.keys() and len(before) >= 9
    for picture, low in before.items():
        enhanced = after[picture]
        assert enhanced.shape == low.shape and enhanced.dtype == low.dtype
        # All are brighter in the dark half; what had form keeps it: order of light, no cast.
        dark = low.mean(-1) <= np.median(low.mean(-1))
        assert enhanced[dark].mean() > 1.15 * low[dark].mean() + 1, picture
        assert np.corrcoef(low.mean(-1).ravel(), enhanced.mean(-1).ravel())[0, 1] > 0.8, picture
        angle = np.degrees(np.arccos(np.clip(
            np.dot(*(x.mean((0, 1)) / np.linalg.norm(x.mean((0, 1))) for x in (low, enhanced))),
            -1, 1)))
        assert angle < 15, picture  # 13 where nearly all is black, and orange lights saturate
        if low.mean() < 100:  # a well-lit one is for --strength auto
            white = [(x.min(-1) >= 253).mean() for x in (low, enhanced)]
            assert white[1] < white[0] + 0.05, picture


@pytest.fixture(scope="module")
def clips(shared, tmp_path_factory):
    """Of one photograph: at rest; and a slow pan while the light rises by half. Noise in every
    frame, a tone beside it."""
    source = shared / "data" / "LIME" / "2.bmp"
    if not source.is_file():
        pytest.skip(f"{source} is absent")
    folder = tmp_path_factory.mktemp("clips")
    picture = Image.open(source).convert("RGB").resize((WIDTH + COUNT, HEIGHT),
                                                       Image.Resampling.LANCZOS)
    low, rng = np.asarray(picture, np.float32), np.random.default_rng(0)
    frames = {"rest": [low[:, :WIDTH]] * COUNT,
              "pan": [low[:, i:i + WIDTH] * (1 + 0.5 * i / COUNT) for i in range(COUNT)]}
    for name, clip in frames.items():
        raw = np.stack([frame + rng.normal(0, 3, frame.shape) for frame in clip])
        (folder / "raw").write_bytes(raw.clip(0, 255).round().astype(np.uint8).tobytes())
        write("-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{WIDTH}x{HEIGHT}", "-r", RATE, "-i",
              folder / "raw", "-f", "lavfi", "-t", COUNT / RATE, "-i", "sine=440", "-c:v",
              "libx264", "-crf", "4", "-preset", "ultrafast", "-pix_fmt", "yuv420p",
              folder / f"{name}.mp4")
    return folder


def enhanced(clip, out, *options):
    assert cli.main(["lljax", "enhance", str(clip), "-o", str(out), "--quiet", *options]) == 0
    return pixels(out).reshape(-1, HEIGHT, WIDTH, 3)


@needs_ffmpeg
def test_a_clip_keeps_time_and_sound_and_gets_brighter(clips, tmp_path):
    clip, out = clips / "pan.mp4", tmp_path / "out.mp4"
    found = enhanced(clip, out)
    low = pixels(clip).reshape(-1, HEIGHT, WIDTH, 3)
    assert found.shape == low.shape == (COUNT, HEIGHT, WIDTH, 3)
    assert times(out) == times(clip) and sound(out) == sound(clip)
    assert probe(out)["duration"] == probe(clip)["duration"] == "3.000000"
    # The light rises, as it does in the clip, without a jump from frame to frame.
    levels, before = (x.mean((1, 2, 3)) for x in (found, low))
    assert (levels > 1.2 * before).all() and levels[-10:].mean() > levels[:10].mean() + 5
    assert np.abs(np.diff(levels)).max() < 0.06 * levels.mean()
    # The pan leaves no ghosts: each frame is nearest to its own enhancement, not to an earlier one.
    alone = enhanced(clip, tmp_path / "alone.mp4", "--smooth", "1")
    own, late = (np.abs(found[20:] - alone[20 - back:COUNT - back]).mean() for back in (0, 4))
    assert own < 0.5 * late


@needs_ffmpeg
def test_a_scene_at_rest_does_not_flicker(clips, tmp_path):
    smooth = enhanced(clips / "rest.mp4", tmp_path / "smooth.mp4")
    alone = enhanced(clips / "rest.mp4", tmp_path / "alone.mp4", "--smooth", "1")
    flicker, without = (x[25:].std(0).mean() for x in (smooth, alone))
    assert flicker < 0.4 * without
    assert abs(smooth[25:].mean() - alone[25:].mean()) < 4

