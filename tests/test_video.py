"""Videos: what goes through unchanged, what is steadied, and what is refused."""

import json
import os
import shutil
import subprocess

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from lljax import cli, weights
from lljax import config as config_lib
from lljax import method as method_lib
from lljax.errors import InputError
from lljax.inference import video

HEIGHT, WIDTH, FRAMES = 48, 64, 20
KEY = jax.random.key(0)

needs_ffmpeg = pytest.mark.skipif(shutil.which("ffmpeg") is None or shutil.which("ffprobe") is None,
                                  reason="no ffmpeg and ffprobe on the PATH")


class Lift(method_lib.Method):
    """Adds a coarse map, the brightness of blocks of 4 x 4, taken away from a constant."""

    multiple = 4
    steady = ("level",)

    def __init__(self, gain=0.0):
        super().__init__(ConfigDict())
        self.gain = gain

    def estimate(self, nets, low, key):
        b, h, w, c = low.shape
        return {"level": low.reshape(b, h // 4, 4, w // 4, 4, c).mean((2, 4))}

    def apply(self, nets, low, maps):
        return low + self.gain * (0.6 - maps["level"].repeat(4, 1).repeat(4, 2))


def scene(height=HEIGHT, width=WIDTH):
    """A dark picture with soft and hard edges, float [H, W, 3]."""
    y, x = np.mgrid[0:height, 0:width]
    soft = 0.15 + 0.1 * np.sin(x / 9)[..., None] * np.cos(y / 7 + np.arange(3)[:, None, None] / 2
                                                          ).transpose(1, 2, 0)
    return (soft + 0.1 * (x // 16 % 2)[..., None]).astype(np.float32)


def run(frames, smooth, gain=0.5):
    method = Lift(gain)
    program = jax.jit(lambda low, memory, smooth: video.step(method, {}, low, KEY, memory, smooth,
                                                             1.0))
    memory, found = video.blank(method, {}, *frames[0].shape[:2], KEY), []
    for frame in frames:
        enhanced, memory = program(jnp.asarray(frame[None], jnp.float32), memory, smooth)
        found.append(np.asarray(enhanced)[0])
    return np.stack(found)


def noisy(frames, seed=0):
    rng = np.random.default_rng(seed)
    return [np.rint(255 * (f + rng.normal(0, 3 / 255, f.shape)).clip(0, 1)) / 255 for f in frames]


def test_a_scene_at_rest_does_not_flicker():
    frames = noisy([scene()] * FRAMES)
    alone, steadied = run(frames, 1), run(frames, 8)
    assert steadied[8:].std(0).mean() < 0.35 * alone[8:].std(0).mean()
    np.testing.assert_allclose(steadied[8:].mean(0), alone[8:].mean(0), atol=0.02)


def test_without_smoothing_each_frame_is_the_method_s_own():
    frames = noisy([scene()] * 3)
    method = Lift(0.5)
    expected = [method.enhance({}, jnp.asarray(f[None], jnp.float32), KEY)[0] for f in frames]
    np.testing.assert_allclose(run(frames, 1), expected, atol=1e-6)


def test_what_moves_leaves_no_trace():
    wide = scene(HEIGHT, WIDTH + FRAMES)
    # the left two thirds rest
    clean = [np.concatenate([wide[:, :2 * WIDTH // 3], wide[:, i + 2 * WIDTH // 3:i + WIDTH]], 1)
             for i in range(FRAMES)]
    wanted = run(clean, 1)
    assert np.abs(run(clean, 8) - wanted).max() < 4 / 255
    frames = noisy(clean)
    alone, steadied = (np.abs(run(frames, smooth) - wanted)[8:] for smooth in (1, 8))
    rests, moves = np.s_[:, :, :WIDTH // 2], np.s_[:, :, -WIDTH // 4:]
    assert steadied[rests].mean() < 0.6 * alone[rests].mean()
    assert steadied[moves].mean() < 1.05 * alone[moves].mean()


def test_a_cut_starts_anew():
    one, other = scene(), scene()[::-1, ::-1] + 0.3
    frames = [one] * 6 + [other] * 2
    found, wanted = run(frames, 8), run(frames, 1)
    np.testing.assert_allclose(found[6], wanted[6], atol=1e-5)


def test_a_light_that_changes_slowly_is_followed():
    frames = noisy([scene() * (0.6 + 0.03 * i) for i in range(FRAMES)])
    found, wanted = run(frames, 8), run(frames, 1)
    assert abs((found - wanted)[-1].mean()) < 1.5 / 255


def test_a_map_of_another_size_is_refused():
    method = Lift()
    with pytest.raises(ValueError, match="divide"):
        method.estimate = lambda nets, low, key: {"level": low[:, :7]}
        video.blank(method, {}, 48, 64, KEY)


def test_every_method_names_maps_that_exist():
    for name in method_lib.list_methods():
        method = method_lib.load(config_lib.default(name, "smoke"))
        assert method.steady, name
        side = 64 * method.multiple // np.gcd(64, method.multiple)
        low = jax.ShapeDtypeStruct((1, side, side, 3), np.float32)
        nets = jax.eval_shape(method.init, KEY, {"low": low, "high": low})
        jax.eval_shape(lambda nets, m=method, s=side: video.blank(m, nets, s, s, KEY), nets)


# ---- files ----


def ffmpeg(*arguments):
    subprocess.run(["ffmpeg", "-y", "-v", "error", *map(str, arguments)], check=True)


def make(path, *options, size=(HEIGHT, WIDTH), rate=25, sound=True, frames=FRAMES):
    """A clip of a slow pan, written by ffmpeg."""
    height, width = size
    wide = scene(height, width + frames)
    raw = np.stack([np.rint(255 * wide[:, i:i + width]) for i in range(frames)]).astype(np.uint8)
    pipe = path.with_suffix(".rgb")
    pipe.write_bytes(raw.tobytes())
    tone = ["-f", "lavfi", "-t", frames / rate, "-i", "sine"] if sound else []
    ffmpeg("-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{width}x{height}", "-r", rate,
           "-i", pipe, *tone, "-c:v", "libx264", "-crf", "4", "-preset", "ultrafast",
           *(options or ["-pix_fmt", "yuv420p"]), path)
    return path


def probe(path, stream="v:0"):
    text = subprocess.run(["ffprobe", "-v", "error", "-of", "json", "-show_streams",
                           "-select_streams", stream, "-show_format", path], check=True,
                          capture_output=True).stdout
    found = json.loads(text)
    return {**found["format"].get("tags", {}), **(found["streams"] or [{}])[0]}


def times(path):
    text = subprocess.run(["ffprobe", "-v", "error", "-of", "json", "-select_streams", "v:0",
                           "-show_entries", "packet=pts_time", path], check=True,
                          capture_output=True).stdout
    return sorted(float(packet["pts_time"]) for packet in json.loads(text)["packets"])


def pixels(path, form="rgb24"):
    raw = subprocess.run(["ffmpeg", "-v", "error", "-i", path, "-map", "0:v:0", "-f", "rawvideo",
                          "-pix_fmt", form, "-fps_mode", "passthrough", "-"], check=True,
                         capture_output=True).stdout
    return np.frombuffer(raw, np.uint8).astype(int)


def sound(path):
    return subprocess.run(["ffmpeg", "-v", "error", "-i", path, "-map", "0:a", "-c", "copy", "-f",
                           "md5", "-"], check=True, capture_output=True).stdout


def through(source, target, **options):
    """The identity, without smoothing: what comes out is what the files make of it."""
    return video.enhance(source, target, Lift(), {}, **{"smooth": 1, **options})


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    return make(tmp_path_factory.mktemp("clip") / "in.mp4", "-pix_fmt", "yuv420p",
                "-metadata", "title=a night")


@needs_ffmpeg
def test_frames_times_sound_and_metadata_stay(clip, tmp_path):
    out, calls = tmp_path / "out.mp4", []
    done = through(clip, out, progress=lambda count, total: calls.append((count, total)))
    assert done.frames == FRAMES and done.size == (HEIGHT, WIDTH) and not done.notes
    assert calls == [(i + 1, FRAMES) for i in range(FRAMES)]
    before, after = probe(clip), probe(out)
    for key in ("width", "height", "pix_fmt", "nb_frames", "duration", "start_time", "title",
                "avg_frame_rate", "time_base"):
        assert after[key] == before[key], key
    assert times(out) == times(clip) and sound(out) == sound(clip)
    assert os.listdir(tmp_path) == ["out.mp4"]


@needs_ffmpeg
@pytest.mark.parametrize("matrix, full", [("bt709", False), ("smpte170m", False), (None, False),
                                          ("bt709", True)])
def test_colours_stay(matrix, full, tmp_path):
    clip = make(tmp_path / "in.mp4", "-vf", f"scale=out_color_matrix={matrix or 'smpte170m'}:"
                f"out_range={'pc' if full else 'tv'},format=yuv420p", "-color_range",
                "pc" if full else "tv", *(["-colorspace", matrix] if matrix else []), frames=6)
    through(clip, tmp_path / "out.mp4", quality=0)
    before, after = probe(clip), probe(tmp_path / "out.mp4")
    for key in ("color_range", "color_space", "color_primaries", "color_transfer"):
        # limited range is the default, and is tagged by some versions only
        assert after.get(key, "tv") == before.get(key, "tv"), key
    change = pixels(tmp_path / "out.mp4", before["pix_fmt"]) - pixels(clip, before["pix_fmt"])
    assert abs(change.mean()) < 0.05 and np.abs(change).mean() < 0.2 and np.abs(change).max() < 8


@needs_ffmpeg
def test_an_odd_size_stays(tmp_path):
    clip = make(tmp_path / "in.mkv", "-pix_fmt", "yuv444p", size=(33, 45), frames=6)
    done = through(clip, tmp_path / "out.mp4")
    assert done.size == (33, 45)
    assert [probe(tmp_path / "out.mp4")[key] for key in ("height", "width")] == [33, 45]
    # VP9 holds odd sizes with a quarter of the colours, H.264 does not
    ffmpeg("-i", clip, "-an", "-c:v", "libvpx-vp9", "-deadline", "realtime", "-pix_fmt", "yuv420p",
           tmp_path / "in.webm")
    done = through(tmp_path / "in.webm", tmp_path / "again.mp4")
    assert "odd size" in done.notes[0]
    found = probe(tmp_path / "again.mp4")
    assert [found[key] for key in ("height", "width", "pix_fmt")] == [33, 45, "yuv444p"]
    done = through(tmp_path / "in.webm", tmp_path / "again.webm")
    found = probe(tmp_path / "again.webm")
    assert [found[key] for key in ("height", "width", "pix_fmt")] == [33, 45, "yuv420p"]
    assert not done.notes


@needs_ffmpeg
def test_a_varying_frame_rate_and_a_late_start_stay(tmp_path):
    clip = make(tmp_path / "in.mkv", "-pix_fmt", "yuv420p", "-vf",
                r"setpts='(N+3*gt(N\,5)+2*gt(N\,9))/25/TB+0.2/TB'", "-fps_mode", "passthrough",
                frames=12)
    assert times(clip)[0] > 0.19 and len(set(np.diff(times(clip)).round(3))) > 2
    for name in ("out.mkv", "out.mp4"):
        through(clip, tmp_path / name)
        np.testing.assert_allclose(times(tmp_path / name), times(clip), atol=1e-3)
        assert float(probe(tmp_path / name, "a:0")["start_time"]) == pytest.approx(0, abs=1e-3)


@needs_ffmpeg
def test_a_turned_video_becomes_upright(clip, tmp_path):
    ffmpeg("-i", clip, "-c", "copy", "-metadata:s:v:0", "rotate=90", tmp_path / "turned.mp4")
    sides = probe(tmp_path / "turned.mp4").get("side_data_list", [])
    if not any("rotation" in side for side in sides):
        pytest.skip("this ffmpeg does not write a rotation that way")
    done = through(tmp_path / "turned.mp4", tmp_path / "out.mp4")
    assert done.size == (WIDTH, HEIGHT)
    found = probe(tmp_path / "out.mp4")
    assert (found["height"], found["width"]) == (WIDTH, HEIGHT)
    assert not any("rotation" in side for side in found.get("side_data_list", []))
    change = pixels(tmp_path / "out.mp4") - pixels(tmp_path / "turned.mp4")
    assert np.abs(change).mean() < 2


@needs_ffmpeg
def test_ten_bits_and_the_shape_of_a_pixel_stay(tmp_path):
    clip = make(tmp_path / "in.mkv", "-pix_fmt", "yuv420p10le", "-vf", "setsar=4/3", frames=6)
    through(clip, tmp_path / "out.mkv", quality=0)
    found = probe(tmp_path / "out.mkv")
    assert found["pix_fmt"] == "yuv420p10le" and found["sample_aspect_ratio"] == "4:3"
    assert np.abs(pixels(tmp_path / "out.mkv") - pixels(clip)).mean() < 1


@needs_ffmpeg
def test_strength_blends(clip, tmp_path):
    found = {}
    for strength in (0.0, 0.5, 1.0):
        out = tmp_path / f"{strength}.mp4"
        video.enhance(clip, out, Lift(0.5), {}, strength=strength, smooth=1)
        found[strength] = pixels(out).mean()
    assert found[0.0] == pytest.approx(pixels(clip).mean(), abs=0.3)
    assert found[0.5] == pytest.approx((found[0.0] + found[1.0]) / 2, abs=1)
    assert found[1.0] > found[0.0] + 20


@needs_ffmpeg
def test_a_cut_off_video_is_reported_and_leaves_nothing_under_its_name(tmp_path):
    whole = make(tmp_path / "whole.mp4", "-pix_fmt", "yuv420p", "-movflags", "+faststart")
    cut = tmp_path / "cut.mp4"
    cut.write_bytes(whole.read_bytes()[:int(whole.stat().st_size * 0.6)])
    with pytest.raises(InputError, match="damaged or cut short") as error:
        through(cut, tmp_path / "out.mp4")
    assert not (tmp_path / "out.mp4").exists()
    kept = tmp_path / "out.partial.mp4"
    assert str(kept) in str(error.value) and f"the {len(times(kept))} frames" in str(error.value)
    assert 0 < len(times(kept)) < FRAMES
    first = kept.read_bytes()
    with pytest.raises(InputError, match=r"out\.partial1\.mp4"):
        through(cut, tmp_path / "out.mp4")
    assert kept.read_bytes() == first
    text = tmp_path / "text.mp4"
    text.write_text("no video")
    with pytest.raises(InputError, match=r"text\.mp4.*ffprobe"):
        through(text, tmp_path / "out.mp4")
    assert not (tmp_path / "out.mp4").exists()


@needs_ffmpeg
def test_an_interrupted_video_leaves_nothing(clip, tmp_path):
    def interrupt(count, total):
        if count == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        through(clip, tmp_path / "out.mp4", progress=interrupt)
    assert os.listdir(tmp_path) == []


@needs_ffmpeg
def test_sound_that_the_format_cannot_hold_is_named(clip, tmp_path):
    with pytest.raises(InputError, match=r"out\.webm: cannot be written .*\.mkv holds any"):
        through(clip, tmp_path / "out.webm")
    assert os.listdir(tmp_path) == []


@needs_ffmpeg
def test_mistakes_are_named(clip, tmp_path):
    taken = tmp_path / "taken.mp4"
    taken.write_text("mine")
    with pytest.raises(InputError, match="--overwrite"):
        through(clip, taken)
    assert taken.read_text() == "mine"
    with pytest.raises(InputError, match="same file"):
        through(clip, clip, overwrite=True)
    for options, message in (({"quality": 99}, "0 .best. to 51"), ({"smooth": 0}, "1 frame"),
                             ({"strength": 2.0}, "from 0 to 1")):
        with pytest.raises(InputError, match=message):
            through(clip, tmp_path / "out.mp4", **options)
    with pytest.raises(InputError, match=r"\.mkv"):
        through(clip, tmp_path / "out.avi")
    with pytest.raises(InputError, match="no such file"):
        through(tmp_path / "absent.mp4", tmp_path / "out.mp4")


def test_a_missing_ffmpeg_is_named(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", "")
    with pytest.raises(InputError, match="need the program ffmpeg.*install"):
        video.check(tmp_path / "out.mp4")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    config = config_lib.default("zerodce", "smoke")
    config.unlock()
    config.model.width = 4
    nets = method_lib.load(config).init(KEY, {"low": np.zeros((1, 8, 8, 3), np.float32)})
    path = tmp_path_factory.mktemp("model") / "small.safetensors"
    weights.save(path, config, nets, {"licence": "test"})
    return str(path)


@needs_ffmpeg
def test_the_command(clip, model, tmp_path, capsys):
    out = tmp_path / "new" / "out.mp4"
    command = ["lljax", "enhance", str(clip), "-o", str(out), "--model", model, "--quiet"]
    assert cli.main(command) == 0
    assert f"{FRAMES} frames of {WIDTH} x {HEIGHT}" in (said := capsys.readouterr().out)
    assert "1 enhanced, 0 failed" in said
    assert len(times(out)) == FRAMES
    before = out.read_bytes()
    assert cli.main(command) == 1  # the other files go on, and this one is not replaced
    assert "--overwrite replaces it" in capsys.readouterr().err and out.read_bytes() == before
    with pytest.raises(InputError, match="in.mp4 is a video and picture.png is none.*one after"):
        cli.main(["lljax", "enhance", "picture.png", str(clip), "-o", str(tmp_path / "x")])
    with pytest.raises(InputError, match="--smooth is for videos"):
        cli.main(["lljax", "enhance", "picture.png", "-o", "x", "--smooth", "3"])


@needs_ffmpeg
def test_a_video_that_cannot_be_decoded_does_not_lose_the_others(clip, tmp_path, capsys):
    odd = tmp_path / "odd.mp4"
    data = bytearray(clip.read_bytes())
    at = data.index(b"avc1", data.index(b"stsd"))
    data[at:at + 4] = b"zzzz"  # no codec goes by this name
    odd.write_bytes(data)
    command = ["lljax", "enhance", str(odd), str(clip), "-o", str(tmp_path / "out"), "--quiet"]
    assert cli.main(command) == 1
    said = capsys.readouterr()
    assert "1 enhanced, 1 failed" in said.out and os.listdir(tmp_path / "out") == ["in.mp4"]
    assert f"error: {odd}: FFmpeg has no decoder" in said.err
    with pytest.raises(InputError, match="strength is 'half'"):
        cli.main([*command, "--strength", "half"])


@needs_ffmpeg
def test_a_second_run_skips_and_both_are_summed_up(clip, model, tmp_path, capsys, monkeypatch):
    text, out = tmp_path / "text.mp4", tmp_path / "out"
    text.write_text("no video")
    command = ["lljax", "enhance", str(clip), str(text), "-o", str(out), "--model", model,
               "--quiet"]
    before = sorted(tmp_path.rglob("*"))
    assert cli.main([*command, "--dry-run"]) == 0
    said = capsys.readouterr()
    assert f"{clip} -> {out / 'in.mp4'}\n" in said.out and "would enhance 2, skip 0" in said.out
    assert sorted(tmp_path.rglob("*")) == before
    assert cli.main([*command, "--json", "-"]) == 1
    said = capsys.readouterr()
    found = json.loads(said.out)  # and nothing else
    assert "1 enhanced, 1 failed; in" in said.err and f"{FRAMES} frames of" in said.err
    assert found["totals"] == {"enhanced": 1, "failed": 1, "skipped": 0}
    assert found["control"] == {"strength": 1.0, "smooth": video.SMOOTH, "quality": None}
    assert found["models"] == [model] and found["versions"] and found["seconds"]["run"] > 0
    first, second = found["files"]
    assert (first["input"], first["output"]) == (str(clip), str(out / "in.mp4"))
    assert [first[key] for key in ("width", "height", "frames", "notes", "error", "skipped")] == [
        WIDTH, HEIGHT, FRAMES, [], None, False]
    assert "text.mp4" in second["error"] and second["width"] is None

    made = (out / "in.mp4").stat().st_mtime_ns
    assert cli.main([*command, "--skip-existing", "--json", str(out / "done.json")]) == 1
    assert "0 enhanced, 1 skipped, 1 failed" in capsys.readouterr().out
    found = json.loads((out / "done.json").read_text())
    assert [file["input"] for file in found["files"] if file["skipped"]] == [str(clip)]
    assert (out / "in.mp4").stat().st_mtime_ns == made
    assert cli.main([*command, "--dry-run"]) == 1
    assert "in.mp4 exists already; --overwrite replaces it" in capsys.readouterr().err
    monkeypatch.setattr(weights, "load", None)  # with nothing to do no model is read
    assert cli.main([command[0], command[1], str(clip), *command[4:], "--skip-existing"]) == 0


def test_names_of_videos_that_cannot_be(tmp_path):
    for name in ("a.mp4", "b.mkv", "other/A.mp4"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    a, b, other = (str(tmp_path / name) for name in ("a.mp4", "b.mkv", "other/A.mp4"))
    out = str(tmp_path / "out")
    for inputs, message in (
            ([a, "-o", f"{out}.mp5"], 'unknown suffix ".mp5", did you mean ".mp4"'),
            ([a, "-o", f"{out}.avi"], "a video is not written as .avi; write e.g. .*out.mp4"),
            ([a, "-o", f"{out}.png"], "a video is not written as .png; write e.g. .*out.mp4"),
            ([a, other, "-o", out], "would both be written to"), ([a, b, "-o", a], "is a file"),
            ([a, "-o", str(tmp_path)], "same file; choose another output folder$"),
            ([a, f"{out}.mkv", "-o", out], "no such file"),
            ([a, "-o", out, "--skip-existing", "--overwrite"], "contradicts --overwrite"),
            ([a, "-o", out, "--dry-run", "--json", "-"], "--dry-run writes nothing")):
        with pytest.raises(InputError, match=message) as error:
            cli.main(["lljax", "enhance", *inputs])
        assert "\n" not in str(error.value) and not os.path.exists(out)
