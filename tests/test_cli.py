"""The installed command, run as a user runs it, on a folder of awkward files."""

import dataclasses
import gc
import io
import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import weakref

import jax
import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import save_file

from lljax import cli, errors, images, weights
from lljax import config as config_lib
from lljax import method as method_lib
from lljax.errors import InputError
from lljax.inference import enhancer, folder
from tests.test_convert import official
from tests.ugly import PROFILE, TEXT, XMP, ugly


def run(*arguments, module=True):
    installed = pathlib.Path(sys.executable).with_name("lljax")
    command = [sys.executable, "-m", "lljax.cli"] if module else [installed]
    result = subprocess.run([*command, *map(str, arguments)], capture_output=True, text=True,
                            timeout=300)
    assert "Traceback" not in result.stderr, result.stderr
    return result


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "small.safetensors"
    config = config_lib.default("zerodce", "smoke")
    nets = method_lib.load(config).init(jax.random.key(0),
                                        {"low": np.zeros((1, 8, 8, 3), np.float32)})
    # The last bias makes every curve brighten: an untrained network changes next to nothing.
    last = nets["curve"]["params"][sorted(nets["curve"]["params"])[-1]]
    last["bias"] = np.full(last["bias"].shape, -0.5, np.float32)
    weights.save(path, config, nets, {"licence": "test"})
    return path


@pytest.fixture(scope="module")
def filled(tmp_path_factory):
    """The ugly folder, which the command never touches, and what becomes of its pictures."""
    path = tmp_path_factory.mktemp("ugly")
    return path, ugly(path)


def tree(folder):
    return {str(p.relative_to(folder)): p.read_bytes()
            for p in sorted(pathlib.Path(folder).rglob("*")) if p.is_file()}


def here(*arguments):
    """The command without a process of its own."""
    return cli.main(["lljax", *map(str, arguments)])


def stored(path):
    """(mode, bits a channel) of a file, as its header says."""
    with Image.open(path) as image:
        bits = 8
        if image.format == "PNG":
            bits = path.read_bytes()[24]
        if image.format == "TIFF":
            (bits,) = set(image.tag_v2[258])
        return image.mode, bits


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")  # Pillow notes what is damaged
def test_the_ugly_folder(filled, model, tmp_path, capsys):
    """What becomes of each file: size, mode, depth, format, metadata; what is named."""
    source, expected = filled
    before, out = tree(source), tmp_path / "out"
    assert here("enhance", source, "-o", out, "--model", model, "--json",
                tmp_path / "done.json") == 1
    assert tree(source) == before
    bad = {name: one.error for name, one in expected.items() if one.error}
    good = {name: one for name, one in expected.items() if not one.error}
    said = capsys.readouterr()
    assert said.out.startswith(f"{len(good)} enhanced, {len(bad)} failed; in {out}; ")
    clip = source / "sub" / "clip.MP4"
    assert said.out.endswith(
        f"; 1 video left, give it by name: {clip}; 1 other file left\n")
    lines = said.err.splitlines()
    assert len(lines) == len(bad)
    for name, message in bad.items():
        (line,) = [line for line in lines if str(source / name) in line]
        assert line.startswith("error: ") and re.search(message, line)
    summary = json.loads((tmp_path / "done.json").read_text())
    assert summary["left"] == {"videos": [str(clip)], "others": 1}
    assert {file["input"] for file in summary["files"]} == {str(source / name) for name in expected}

    assert set(tree(out)) == {images.output_name(name) for name in good}
    for name, wanted in good.items():
        target = out / images.output_name(name)
        low, made = images.read(source / name), images.read(target)
        assert made.format == wanted.form == images.FORMATS[target.suffix.lower()], name
        assert made.pixels.shape == (*wanted.size[::-1], 3), name
        mode, bits = stored(target)
        assert bits == wanted.bits and made.pixels.dtype == f"uint{bits}", name
        modes = {(False, False): ("RGB", "P"), (False, True): ("RGBA",),
                 (True, False): ("I;16",) if bits == 16 else ("L",),
                 # Pillow shows a 16-bit grey PNG with alpha as colour.
                 (True, True): ("LA",) if bits == 8 else ("LA", "RGBA")}
        assert mode in modes[wanted.grey, wanted.alpha], name
        np.testing.assert_array_equal(made.alpha, low.alpha, name)
        assert (made.icc, made.exif, made.xmp, made.text) == (
            low.icc, low.exif, low.xmp, low.text), name
        with Image.open(target) as image:
            assert image.size == wanted.size and image.getexif().get(0x0112, 1) == 1, name
        old, new = (images.to_float(one.pixels) for one in (low, made))
        if name != "bits.png":  # black and white stay what they are
            assert new.mean() > 1.1 * old.mean(), name
        if min(old.std(), old.size / 300) > 0.05:  # the same picture, the same way up
            assert np.corrcoef(old.ravel(), new.ravel())[0, 1] > 0.6, name
    for orientation in range(1, 9):
        with Image.open(out / f"turned_{orientation}.jpg") as image:
            assert image.getexif()[0x010F] == "Maker" and image.info["icc_profile"] == PROFILE
            assert image.info["dpi"] == (300, 300)
    for name in ("said.jpg", "said.png", "said.tif", "said.webp", "said.avif", "deep_said.png"):
        with Image.open(out / name) as image:
            said = b'tiff:Orientation="1"' if image.format != "TIFF" else b""  # Pillow takes it out
            assert image.info["xmp"] == XMP.replace(b'tiff:Orientation="6"', said), name
    with Image.open(out / "said.png") as image:
        assert {key: image.text[key] for key in TEXT} == TEXT

    first = tree(out)
    assert here("enhance", source, "-o", out, "--model", model) == 1
    said = capsys.readouterr()
    assert said.out.startswith(f"0 enhanced, {len(expected)} failed")
    assert said.err.count("exists already; --overwrite") == len(good) and tree(out) == first
    here("enhance", source, "-o", out, "--model", model, "--overwrite", "--quiet")
    assert tree(out) == first  # the same seed gives the same bytes


def test_one_file_to_one_file(filled, model, tmp_path):
    source, _ = filled
    result = run("enhance", source / "UPPER.JPG", "-o", tmp_path / "b.png", "--model", model,
                 module=False)
    assert result.returncode == 0 and result.stderr == ""
    with Image.open(tmp_path / "b.png") as image:
        assert (image.format, image.size) == ("PNG", (19, 13))


def test_an_output_folder_inside_the_input_is_no_input(two, model, capsys):
    for _ in range(2):
        assert here("enhance", two, "-o", two / "out", "--model", model, "--overwrite") == 0
        (two / "out" / "notes.txt").touch()
    assert set(tree(two / "out")) == {"a.png", os.path.join("sub", "b.png"), "notes.txt"}
    assert " left" not in capsys.readouterr().out


def test_heic_and_raw_get_suffixes_that_can_be_written(tmp_path):
    source = tmp_path / "in"
    source.mkdir()
    for name in ("IMG_1.HEIC", "IMG_1.CR2", "IMG_2.nef", "a.tif", "b.png"):
        (source / name).touch()
    jobs = folder.plan([str(source)], str(tmp_path / "out")).jobs
    names = {os.path.basename(job.file): os.path.basename(job.target) for job in jobs}
    assert names == {"IMG_1.HEIC": "IMG_1.jpg", "IMG_1.CR2": "IMG_1.tif", "IMG_2.nef": "IMG_2.tif",
                     "a.tif": "a.tif", "b.png": "b.png"}
    (source / "IMG_1.jpg").touch()  # as a phone puts it beside its HEIC
    planned = folder.plan([str(source)], str(tmp_path / "out"))
    assert "IMG_1.jpg" in {os.path.basename(job.file) for job in planned.jobs}
    ((job, message),) = planned.refused
    assert os.path.basename(job.file) == "IMG_1.HEIC" and "by itself, into another" in message
    (source / "IMG_1.jpg").unlink()
    replaced = folder.plan([str(source)], None)
    assert len(replaced.jobs) == 2 and len(replaced.refused) == 3
    assert all("cannot be replaced, its format is not written" in message
               for _, message in replaced.refused)


def test_maps_beside_the_results(filled, model, tmp_path, capsys):
    source = filled[0] / "sub"
    plain, out = tmp_path / "plain", tmp_path / "out"
    here("enhance", source, "-o", plain, "--model", model)
    assert here("enhance", source, "-o", out, "--model", model, "--save-maps") == 1
    assert "5 enhanced, 1 failed" in capsys.readouterr().out.splitlines()[-1]
    maps = {f"{os.path.splitext(name)[0]}_curves.png": name for name in tree(plain)}
    assert set(tree(out)) == set(tree(plain)) | set(maps)
    for name, content in tree(plain).items():
        assert tree(out)[name] == content, name  # bit for bit
    for name, result in maps.items():
        with Image.open(out / name) as image, Image.open(out / result) as enhanced:
            assert (image.format, image.mode, image.size) == ("PNG", "RGB", enhanced.size)
            assert np.asarray(image).mean() > 150  # these curves brighten


def test_an_interrupted_run_with_maps_goes_on(two, model, tmp_path, capsys):
    """Maps without their result are an unfinished run's, if lljax made them."""
    out = tmp_path / "out"
    command = ("enhance", two, "-o", out, "--model", model, "--save-maps")
    assert here(*command) == 0
    whole = tree(out)
    (out / "a.png").unlink()
    (out / "sub" / "b.png").unlink()
    shutil.copy(two / "a.png", out / "sub" / "b_curves.png")  # somebody else's
    capsys.readouterr()
    assert here(*command) == 1  # by default nothing that exists is replaced
    assert capsys.readouterr().err.count("_curves.png exists already") == 2
    assert here(*command, "--skip-existing") == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "b_curves.png exists already; --overwrite" in error
    assert tree(out) == {**{name: whole[name] for name in ("a.png", "a_curves.png")},
                         "sub/b_curves.png": (two / "a.png").read_bytes()}
    assert here(*command, "--overwrite") == 0 and tree(out) == whole

    # A result of what was once a map is nobody's map.
    shutil.copy(out / "a_curves.png", two)
    assert here("enhance", two / "a_curves.png", "-o", tmp_path / "of", "--model", model) == 0
    shutil.copy(two / "a.png", two / "sub" / "c.png")
    shutil.copy(tmp_path / "of" / "a_curves.png", out / "sub" / "c_curves.png")
    assert here("enhance", two / "sub", "-o", out / "sub", "--model", model, "--save-maps",
                "--skip-existing") == 1
    assert "c_curves.png exists already" in capsys.readouterr().err


@pytest.fixture
def two(tmp_path):
    folder = tmp_path / "two"
    (folder / "sub").mkdir(parents=True)
    rng = np.random.default_rng(0)
    for name in ("a.png", "sub/b.png"):
        Image.fromarray(rng.integers(0, 90, (64, 64, 3)).astype(np.uint8)).save(folder / name)
    return folder


def test_maps_take_nobodys_place(two, model, tmp_path, capsys):
    """Where a name is taken, the picture's suffix stays in it; only who cannot be helped waits."""
    out = tmp_path / "out"
    shutil.copy(two / "sub" / "b.png", two / "b_Curves.png")  # on many systems the same name
    Image.open(two / "a.png").save(two / "a.jpg")
    command = ("enhance", two / "sub" / "b.png", two / "b_Curves.png", two / "a.jpg",
               two / "a.png", "-o", out, "--model", model, "--save-maps")
    assert here(*command, "--dry-run") == 0
    said = capsys.readouterr().out.splitlines()
    assert not out.exists() and "would enhance 4" in said[-1]
    assert here(*command) == 0
    assert set(tree(out)) == {
        "a.jpg", "a.jpg_curves.png", "a.png", "a.png_curves.png", "b.png", "b.png_curves.png",
        "b_Curves.png", "b_Curves_curves.png"}
    assert {line.split(" -> ")[1] for line in said[:-1]} == {str(out / name) for name in tree(out)}

    # What was alone in an earlier run has its map's name already.
    alone = tmp_path / "alone"
    here("enhance", two / "a.jpg", "-o", alone, "--model", model, "--save-maps")
    before = tree(alone)
    assert here("enhance", two / "a.jpg", two / "a.png", "-o", alone, "--model", model,
                "--save-maps", "--skip-existing") == 0
    assert set(tree(alone)) - set(before) == {"a.png", "a.png_curves.png"}
    assert {name: tree(alone)[name] for name in before} == before

    shutil.copy(two / "a.png", two / "a.png_curves.png")
    capsys.readouterr()
    for option, count in (("--dry-run", 0), ("--quiet", 8)):
        assert here("enhance", two, "-o", tmp_path / "rest", "--model", model, "--save-maps",
                    option) == 1
        error = capsys.readouterr().err
        assert error.count("\n") == 1 and error.startswith(
            f"error: {two / 'a.png'}: its map {tmp_path / 'rest' / 'a.png_curves.png'} would have "
            f"the place of the result of {two / 'a.png_curves.png'}; ")
        assert len(list((tmp_path / "rest").rglob("*.*"))) == count


def test_what_is_refused_leaves_no_folders(two, model, tmp_path, capsys):
    before = sorted(tmp_path.rglob("*"))
    missing = tmp_path / "no.safetensors"
    for options in (("--model", missing), ("--compare", missing)):
        with pytest.raises(InputError, match="no.safetensors"):
            here("enhance", two, "-o", tmp_path / "out", "--json", tmp_path / "new" / "a.json",
                 *options)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_file_that_comes_while_a_picture_is_at_work_stays(two, model, tmp_path, capsys,
                                                            monkeypatch):
    out, enhancing = tmp_path / "out", folder.enhancing

    def meanwhile(*arguments):
        work = enhancing(*arguments)

        def slow(picture):
            (out / "a.png").write_text("mine")
            return work(picture)
        return slow

    monkeypatch.setattr(folder, "enhancing", meanwhile)
    command = ("enhance", two, "-o", out, "--model", model)
    assert here(*command) == 1
    assert capsys.readouterr().err == (
        f"error: {two / 'a.png'}: {out / 'a.png'} exists already; --overwrite replaces it\n")
    assert (out / "a.png").read_text() == "mine"
    assert sorted(tree(out)) == ["a.png", "sub/b.png"]
    assert here(*command, "--overwrite") == 0 and pixels(out / "a.png").shape == (64, 64, 3)


def test_mistakes_are_one_line_before_any_work(two, model, tmp_path):
    out = tmp_path / "out"
    one = two / "a.png"
    (tmp_path / "other").mkdir()
    shutil.copy(one, tmp_path / "other" / "A.png")
    (tmp_path / "videos").mkdir()
    (tmp_path / "videos" / "clip.mkv").touch()
    cases = [
        (("enhanse", one), 'Did you mean "enhance"'),
        (("enhance", one, "-o", out, "--modle", model), 'Did you mean "--model"'),
        (("enhance", one), "-o/--output"),
        (("enhance", one, tmp_path / "missing.png", "-o", out, "--model", model), "missing.png"),
        (("enhance", one, "-o", out, "--model", "nothing"), "nothing"),
        (("enhance", one, "-o", out, "--model", one), "lljax convert"),
        (("enhance", one, tmp_path / "other", "-o", out, "--model", model), "both be written"),
        (("enhance", two, "-o", two, "--model", model, "--overwrite"), "same folder"),
        (("enhance", tmp_path / "other", one, "-o", one, "--model", model), "is a file"),
        (("enhance", out.parent / "none", "-o", out, "--model", model), "none"),
        (("enhance", one, "-o", out, "--save-map", "--model", model), 'Did you mean "--save-maps"'),
        (("enhance", one, "-o", one / "in", "--model", model), "choose another -o"),
        (("enhance", one, "-o", f"{out}.jpge"), f'".jpge", did you mean ".jpg"? '
         f"(a folder of that name is written {out}.jpge{os.sep})"),
        (("enhance", one, "-o", f"{out}.HEIC"), f"not written as .heic; write e.g. {out}.jpg"),
        (("enhance", one, "-o", f"{out}.mp4"), f"not written as .mp4; write e.g. {out}.jpg"),
        (("enhance", tmp_path / "videos", "-o", out), "no pictures there but videos, give them"),
        (("enhance", one, tmp_path / "videos" / "clip.mkv", "-o", out),
         f"{tmp_path / 'videos' / 'clip.mkv'} is a video and {one} is none; enhance videos and"),
        (("convert", "zerodse", one, "-o", tmp_path / "x.safetensors"), 'Did you mean "zerodce"'),
    ]
    before = tree(tmp_path)
    for arguments, message in cases:
        with pytest.raises(InputError) as error:
            here(*arguments)
        assert message in str(error.value) and "\n" not in str(error.value), arguments
    assert tree(tmp_path) == before and not out.exists()
    result = run(*cases[0][0])
    assert result.returncode == 2 and result.stderr.count("\n") == 1
    assert result.stderr.startswith("error: ") and result.stdout == ""


def test_a_folder_with_a_pictures_suffix_ends_in_a_slash(two, tmp_path):
    for name in (f"{tmp_path / 'out.jpge'}{os.sep}", str(tmp_path / "2024.05")):
        (job,) = folder.plan([str(two / "a.png")], name).jobs
        assert job.target == os.path.join(name, "a.png")


def test_a_folder_that_cannot_be_searched_does_not_cost_the_others(two, model, tmp_path, capsys,
                                                                   monkeypatch):
    scandir = os.scandir

    def refuse(path):
        if os.fspath(path) == str(two / "sub"):
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)  # the tests may run as root, who may read all
    assert here("enhance", two, "-o", tmp_path / "out", "--model", model, "--json",
                tmp_path / "done.json") == 1
    said = capsys.readouterr()
    assert said.err.startswith(f"error: {two / 'sub'}: cannot be searched (Permission denied); ")
    assert said.err.count("\n") == 1 and said.out.startswith("1 enhanced, 1 failed")
    assert set(tree(tmp_path / "out")) == {"a.png"}
    (failed,) = [file for file in json.loads((tmp_path / "done.json").read_text())["files"]
                 if file["error"]]
    assert failed["input"] == str(two / "sub") and failed["output"] is None


def pixels(path):
    return np.asarray(Image.open(path)).astype(int)


def test_controls_reach_the_result(two, model, tmp_path):
    low = pixels(two / "a.png")
    cases = {"plain": (), "none": ("--strength", "0"), "half": ("--strength", "0.5"),
             "auto": ("--strength", "auto"), "kept": ("--protect-highlights", "1"),
             "nlm": ("--denoise", "nlm"), "tta": ("--tta",)}
    result = {}
    for name, options in cases.items():
        assert here("enhance", two / "a.png", "-o", tmp_path / name, "--model", model,
                    *options) == 0
        result[name] = pixels(tmp_path / name / "a.png")
    np.testing.assert_array_equal(result["none"], low)
    assert np.abs(result["half"] - (low + result["plain"]) / 2).max() <= 0.51
    np.testing.assert_array_equal(result["auto"], result["plain"])  # it is dark
    luma = (low @ [0.299, 0.587, 0.114])[..., None] / 255
    assert np.abs(result["kept"] - result["plain"] - luma**2 * (low - result["plain"])).max() < 0.6
    assert result["nlm"].std() < result["plain"].std()
    assert 0 < np.abs(result["tta"] - result["plain"]).max() < 60


def test_controls_and_maps_give_the_same_result(two, model, tmp_path):
    for options in (("--strength", "0.5"), ("--tta",)):
        for maps in ((), ("--save-maps",)):
            assert here("enhance", two, "-o", tmp_path / f"{len(maps)}", "--model", model,
                        "--overwrite", *options, *maps) == 0
        for name, content in tree(tmp_path / "0").items():
            assert tree(tmp_path / "1")[name] == content
    assert (tmp_path / "1" / "sub" / "b_curves.png").exists()


def test_a_second_run_skips_what_is_there(two, model, tmp_path, capsys, monkeypatch):
    out = tmp_path / "out"
    here("enhance", two / "sub", "-o", out / "sub", "--model", model)
    before = (out / "sub" / "b.png").stat().st_mtime_ns
    assert here("enhance", two, "-o", out, "--model", model, "--skip-existing") == 0
    assert "1 enhanced, 1 skipped, 0 failed" in capsys.readouterr().out
    assert (out / "a.png").exists() and (out / "sub" / "b.png").stat().st_mtime_ns == before
    monkeypatch.setattr(weights, "load", None)  # with nothing to do no model is read
    assert here("enhance", two, "-o", out, "--model", model, "--skip-existing") == 0
    assert "0 enhanced, 2 skipped" in capsys.readouterr().out


def test_a_dry_run_writes_nothing_and_needs_no_model(two, tmp_path, capsys):
    before = tree(tmp_path)
    assert here("enhance", two, "-o", tmp_path / "out", "--dry-run", "--model", "none") == 0
    said = capsys.readouterr().out
    assert f"{two / 'sub' / 'b.png'} -> {tmp_path / 'out' / 'sub' / 'b.png'}\n" in said
    assert "would enhance 2, skip 0, refuse 0" in said
    (tmp_path / "out").mkdir()
    shutil.copy(two / "a.png", tmp_path / "out")
    assert here("enhance", two, "-o", tmp_path / "out", "--dry-run") == 1
    assert "exists already" in capsys.readouterr().err
    shutil.rmtree(tmp_path / "out")
    assert tree(tmp_path) == before


def test_the_summary_for_programs(two, model, tmp_path, capsys):
    (two / "c.png").write_text("no picture")
    Image.new("RGB", (30, 20)).save(two / "d.png")
    here("enhance", two / "d.png", "-o", tmp_path / "out", "--model", model)
    capsys.readouterr()
    command = ("enhance", two, "-o", tmp_path / "out", "--model", model, "--strength", "0.5",
               "--seed", "7")
    assert here(*command, "--json", "-", "--skip-existing") == 1
    said, err = capsys.readouterr()
    found = json.loads(said)
    assert "2 enhanced, 1 skipped, 1 failed" in err
    assert found["totals"] == {"enhanced": 2, "failed": 1, "skipped": 1}
    assert found["models"] == [str(model)] and found["versions"]["jax"] == jax.__version__
    assert found["control"]["strength"] == 0.5 and found["seconds"]["run"] > 0
    assert found["seed"] == 7
    files = {os.path.basename(file["input"]): file for file in found["files"]}
    assert len(found["files"]) == 4 and files["d.png"]["skipped"]
    assert files["b.png"]["output"] == str(tmp_path / "out" / "sub" / "b.png")
    assert (files["b.png"]["width"], files["b.png"]["height"]) == (64, 64)
    assert files["b.png"]["seconds"] > 0 and files["b.png"]["error"] is None
    assert "c.png: not a picture" in files["c.png"]["error"] and files["c.png"]["width"] is None

    summary = tmp_path / "new" / "done.json"
    for _ in range(2):  # an earlier summary is replaced, nothing else
        assert here(*command, "--json", summary, "--overwrite") == 1
    assert json.loads(summary.read_text())["totals"]["enhanced"] == 3
    for content in ("{}", "[]", "mine"):
        summary.write_text(content)
        with pytest.raises(InputError, match="left alone"):
            here(*command, "--json", summary, "--overwrite")
        assert summary.read_text() == content


def test_in_place(two, model, tmp_path, capsys):
    (two / "c.png").write_text("no picture")
    (two / "link.png").symlink_to(two / "a.png")
    (two / "gone.png").symlink_to("nothing.png")
    (two / "a.png").chmod(0o640)
    here("enhance", two, "-o", tmp_path / "out", "--model", model)
    before = tree(two)
    assert here("enhance", two, two / "a.png", "--in-place", "--model", model) == 1
    said = capsys.readouterr()
    assert "2 enhanced, 2 failed; in place" in said.out
    assert "gone.png: cannot be replaced, it is a link to nothing.png, which does not exist" in (
        said.err)
    after = tree(two)
    assert set(after) == set(before) and after["c.png"] == before["c.png"]
    assert (two / "link.png").is_symlink() and (two / "a.png").stat().st_mode & 0o777 == 0o640
    for name in ("a.png", "sub/b.png"):
        np.testing.assert_array_equal(pixels(two / name), pixels(tmp_path / "out" / name))


def test_in_place_loses_nothing_when_writing_fails(two, model, monkeypatch, capsys):
    before = tree(two)

    def full(self, file, *arguments, **options):
        file.write(b"half of it")
        raise OSError("No space left on device")

    monkeypatch.setattr(Image.Image, "save", full)
    assert here("enhance", two, "--in-place", "--model", model) == 1
    assert capsys.readouterr().err.count("No space left") == 2
    assert tree(two) == before


def test_through_a_pipe(two, model, tmp_path):
    here("enhance", two / "a.png", "-o", tmp_path / "out", "--model", model)
    command = [sys.executable, "-m", "lljax.cli", "enhance", "-", "-o", "-", "--model", model]
    done = subprocess.run(command, input=(two / "a.png").read_bytes(), capture_output=True,
                          timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout == (tmp_path / "out" / "a.png").read_bytes()
    assert done.stderr.startswith(b"1 enhanced, 0 failed; in standard output")


class Stream:
    """Standard input or output of bytes."""

    def __init__(self, content=b""):
        self.buffer = io.BytesIO(content)

    def isatty(self):
        return False


def test_a_file_to_a_stream_and_back(two, model, tmp_path, monkeypatch, capsys):
    here("enhance", two / "a.png", "-o", tmp_path / "out", "--model", model)
    monkeypatch.setattr(sys, "stdout", Stream())
    assert here("enhance", two / "a.png", "-o", "-", "--model", model) == 0
    assert sys.stdout.buffer.getvalue() == (tmp_path / "out" / "a.png").read_bytes()
    monkeypatch.undo()
    monkeypatch.setattr(sys, "stdin", Stream((two / "a.png").read_bytes()))
    assert here("enhance", "-", "-o", tmp_path / "b.png", "--model", model) == 0
    np.testing.assert_array_equal(pixels(tmp_path / "b.png"), pixels(tmp_path / "out" / "a.png"))
    monkeypatch.setattr(sys, "stdin", Stream(b"no picture"))
    capsys.readouterr()
    assert here("enhance", "-", "-o", tmp_path / "c.png", "--model", model) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: standard input: ") and error.count("\n") == 1
    assert not (tmp_path / "c.png").exists()


def test_a_sheet_of_models(two, model, tmp_path, capsys):
    other = tmp_path / "other.safetensors"
    shutil.copy(model, other)
    Image.new("L", (30, 20), 40).save(two / "sub" / "small.jpg")
    assert here("enhance", two, "-o", tmp_path / "out", "--compare", f"{model},{other}",
                "--strength", "0.5") == 0
    assert set(tree(tmp_path / "out")) == {
        "a_compare.jpg", "sub/b_compare.jpg", "sub/small_compare.jpg"}
    sheet = pixels(tmp_path / "out" / "a_compare.jpg")
    assert sheet.shape == (108, 512, 3)  # three of 64 x 64 in cells as wide as their names need
    low, first, second = (sheet[8:72, left:left + 64] for left in (8, 176, 344))
    assert np.abs(low - pixels(two / "a.png")).mean() < 12 and first.mean() > low.mean() + 20
    assert np.abs(first - second).mean() < 1
    assert sheet[72:, 8:168].min() < 60  # a name is written there
    assert here("enhance", two, "-o", tmp_path / "all", "--compare", "all") == 0
    assert len(tree(tmp_path / "all")) == 3


def test_sheets_of_pictures_of_one_name(two, model, tmp_path):
    """A phone's pair, and other formats of one picture."""
    for name in ("a.bmp", "A.jpg", "a.bmp.png"):
        Image.open(two / "a.png").save(two / name)
    (two / "A.HEIC").touch()
    planned = folder.plan([str(two)], str(tmp_path / "c"), sheets=True)
    assert not planned.refused
    assert {os.path.relpath(job.target, tmp_path / "c") for job in planned.jobs} == {
        "a.png_compare.jpg", "a.bmp_compare.jpg", "A.jpg_compare.jpg", "A.HEIC_compare.jpg",
        "a.bmp.png_compare.jpg", os.path.join("sub", "b_compare.jpg")}
    (two / "A.HEIC").unlink()
    assert here("enhance", two, "-o", tmp_path / "c", "--compare", model) == 0
    assert len(tree(tmp_path / "c")) == 5


@pytest.mark.parametrize("options, message", [
    (("--strength", "1.5"), "strength is 1.5"), (("--strength", "-0.5"), "strength is -0.5"),
    (("--strength", "-1e3"), "strength is -1000"),
    (("--seed", "-1"), "'-1' is no seed: give a whole number from 0 to 4294967295"),
    (("--seed", "9" * 20), "'9{20}' is no seed"),
    (("--seed", "x"), "'x' is no seed"), (("--overwrite", "-1"), 'unknown option "-1"'),
    (("--strength", "much"), "strength is 'much'"),
    (("--denoise", "nml"), 'Did you mean "nlm"'),
    (("--protect-highlights", "7"), "protect_highlights is 7"),
    (("--protect-highlights", "x"), "invalid float"), (("--in-place",), "not both"),
    (("--skip-existing", "--overwrite"), "--skip-existing contradicts --overwrite"),
    (("--dry-run", "--json", "-"), "--dry-run writes nothing"),
    (("--json", "summary.txt"), "ends in .json"),
    (("--compare", "all", "--model", "zerodce"), "leave out --model"),
    (("--compare", "zerodcf"), 'Did you mean "zerodce"'),
    (("--compare", ","), "--compare")])
def test_options_that_cannot_be(two, tmp_path, options, message):
    before = tree(tmp_path)
    with pytest.raises(InputError, match=message) as error:
        here("enhance", two, "-o", tmp_path / "out", *options)
    assert "\n" not in str(error.value) and tree(tmp_path) == before


def test_a_seed_of_export_is_checked():
    with pytest.raises(InputError, match="is no seed"):
        here("export", "zerodce", "-o", "m.stablehlo", "--seed", "9" * 20)


def test_a_name_that_looks_like_an_option(two, model, tmp_path, monkeypatch):
    monkeypatch.chdir(two)
    for name in ("-dash.png", "-old.png"):
        shutil.copy("a.png", name)
        with pytest.raises(InputError) as error:
            here("enhance", name, "-o", tmp_path / "out", "--model", model)
        assert str(error.value) == (f'unknown option "{name}"; for the file of that name write '
                                    f"./{name}, or -- {name} after all options")
    assert here("enhance", "-o", tmp_path / "out", "--model", model, "--", "-dash.png") == 0
    assert here("enhance", "./-old.png", "-o", tmp_path / "out", "--model", model) == 0
    assert set(tree(tmp_path / "out")) == {"-dash.png", "-old.png"}


def test_names_are_shown_in_one_line(two, model, tmp_path, capsys):
    name = "a\n\x1b[31m\udcff\u2028b.png"
    shown = "a\\n\\x1b[31m\\udcff\\u2028b.png"
    (two / "sub" / "b.png").rename(two / name)
    (two / "a.png").unlink()
    assert here("enhance", two, "-o", tmp_path / "out", "--dry-run") == 0
    assert capsys.readouterr().out.splitlines()[0] == (
        f"{two}/{shown} -> {tmp_path}/out/{shown}")
    (two / name).write_text("no picture")
    assert here("enhance", two, "-o", tmp_path / "out", "--model", model) == 1
    error = capsys.readouterr().err
    assert error.startswith(f"error: {two}/{shown}: not a picture") and error.count("\n") == 1
    monkey = ["lljax", "enhance", f"{two}/{name}/none", "-o", "x"]
    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit) as code:
        patch.setattr(sys, "argv", monkey)
        cli.entry()
    error = capsys.readouterr().err
    assert code.value.code == 2 and shown in error and error.count("\n") == 1


def test_several_pictures_go_into_a_folder_that_looks_like_one(two, tmp_path):
    for inputs in ((two,), (two / "a.png", two / "sub" / "b.png")):
        for name in ("o3.png", "o3.HEIC", "o3.mp4"):
            with pytest.raises(InputError, match=f"folder of that name is written .*{name}/"):
                here("enhance", *inputs, "-o", tmp_path / name)
        assert here("enhance", *inputs, "-o", f"{tmp_path / 'o3.png'}{os.sep}", "--dry-run") == 0
    assert not list(tmp_path.glob("o3*"))


def test_a_wrong_number_of_frames_is_a_wrong_option(tmp_path):
    (tmp_path / "a.mp4").touch()
    with pytest.raises(InputError, match="--smooth 0: it must be 1 frame or more"):
        here("enhance", tmp_path / "a.mp4", "-o", tmp_path / "out", "--smooth", "0")


def test_other_networks_are_named_in_a_short_line(two, tmp_path):
    with pytest.raises(InputError, match="; and 1[0-9] more; a setting of the networks") as error:
        here("enhance", two, "-o", tmp_path / "out", "--model", "zerodce", "--set",
             "model.width=8")
    assert len(str(error.value)) < 400 and "\n" not in str(error.value)


class CtrlC:
    """Ctrl-C in a callback of the garbage collector, where Python ignores the exception."""

    def __init__(self):
        self.seen = []

    def __call__(self, phase, _):
        if phase == "start" and not self.seen:
            self.seen.append("sent")
            signal.raise_signal(signal.SIGINT)

    def come(self):
        gc.callbacks.append(self)
        try:
            gc.collect()
            self.seen.append("lost")
        finally:
            gc.callbacks.remove(self)


@pytest.fixture
def interruptible():
    """Ctrl-C as in a terminal: what runs in the background of a shell's script ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
@pytest.mark.parametrize("when", ["starting", "at work"])
def test_ctrl_c_stops_where_python_ignores_it(two, model, tmp_path, monkeypatch, capsys, when):
    for i in range(30):
        shutil.copy(two / "a.png", two / f"c{i}.png")
    ctrl_c, load, enhancing = CtrlC(), enhancer.load, folder.enhancing
    monkeypatch.setattr(sys, "unraisablehook", lambda found: ctrl_c.seen.append(found))

    def loading(*arguments, **options):
        ctrl_c.come()
        return load(*arguments, **options)

    def working(*arguments):
        work = enhancing(*arguments)

        def first(picture):
            ctrl_c.come()
            return work(picture)
        return first

    if when == "starting":
        monkeypatch.setattr(enhancer, "load", loading)
    else:
        monkeypatch.setattr(folder, "enhancing", working)
    command = ("enhance", two, "-o", tmp_path / "out", "--model", model)
    with pytest.raises(errors.Stopped, match="whole, or not there; --skip-existing goes on") as one:
        here(*command)
    assert one.value.code == 130 and ctrl_c.seen[:2] == ["sent", "lost"]
    assert set(ctrl_c.seen[2:]) <= {"lost"} and capsys.readouterr().err == ""
    if when == "starting":
        assert not (tmp_path / "out").exists()
    else:
        assert len(tree(tmp_path / "out")) == 1
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.mark.usefixtures("interruptible")
def test_ctrl_c_is_one_line_and_kept_from_who_ignores_it(two, model, tmp_path, monkeypatch):
    def interrupted(*_, **__):
        signal.raise_signal(signal.SIGINT)
        raise InputError("went on")

    monkeypatch.setattr(enhancer, "load", interrupted)
    command = ("enhance", two, "--in-place", "--model", model)
    with pytest.raises(errors.Stopped, match="file is whole, as it was or replaced"):
        here(*command)
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with pytest.raises(InputError, match="went on"):
            here(*command)
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("arguments, message", [
    (("-",), "give -o"), (("-", ".", "-o", "folder"), "- stands for standard input"),
    (("-", "-o", "folder"), "has no name"),
    (("-", "--in-place"), "cannot be replaced"), ((".", "-o", "-"), "give one input file"),
    (("-", "-o", "-", "--save-maps"), "leave out --save-maps"),
    (("-", "-o", "-", "--json", "-"), "leave out --json -")])
def test_streams_that_cannot_be(arguments, message):
    with pytest.raises(InputError, match=message):
        here("enhance", *arguments)


@pytest.mark.parametrize("ahead", [0, 2])
def test_memory_does_not_grow_with_the_number_of_pictures(tmp_path, monkeypatch, ahead):
    """However many there are, few are alive: waiting, worked on, or being written."""
    for i in range(40):
        Image.new("RGB", (8, 8)).save(tmp_path / f"{i}.png")
    (tmp_path / "out").mkdir()
    jobs = folder.plan([str(tmp_path)], str(tmp_path / "out")).jobs
    made, counts, real = [], [], images.read

    def read(path):
        picture = real(path)
        made.append(weakref.ref(picture.pixels))
        return picture

    def work(picture):
        result = dataclasses.replace(picture, pixels=picture.pixels + 1)
        made.append(weakref.ref(result.pixels))
        counts.append(sum(pixels() is not None for pixels in made))
        return result, {}

    monkeypatch.setattr(images, "read", read)
    done = list(folder.run(jobs, work, ahead))
    assert [one.job for one in done] == jobs and len(counts) == 40
    # The two at work, `ahead` read and `ahead` + 1 written; and each of the threads may still hold
    # what it has just handed over.
    assert max(counts) <= 2 + (2 * ahead + 1) + 2 * max(1, ahead)


def test_the_process_s_memory_does_not_grow_with_the_number_of_pictures(tmp_path):
    """12 pictures, then 60: keeping the 48 more decoded, and nothing else, would be 99 MB."""
    status = pathlib.Path("/proc/self/status")
    if not status.exists() or "VmHWM" not in status.read_text():
        pytest.skip("this system does not tell the largest memory of a process")
    rng = np.random.default_rng(0)
    coarse = Image.fromarray(rng.integers(0, 90, (8, 12, 3)).astype(np.uint8))
    coarse.resize((960, 720), Image.Resampling.BICUBIC).save(tmp_path / "one.jpg")
    for count in (12, 60):
        (tmp_path / str(count)).mkdir()
        for i in range(count):
            shutil.copy(tmp_path / "one.jpg", tmp_path / str(count) / f"{i}.jpg")
    code = ("import re\nfrom lljax import cli\n"
            "for count in ('12', '60'):\n"
            "    code = cli.main(['lljax', 'enhance', count, '-o', 'out' + count])\n"
            "    peak = re.search(r'VmHWM:\\s+(\\d+) kB', open('/proc/self/status').read())[1]\n"
            "    print(code, int(peak) * 1024)\n")
    # Else glibc keeps what is let go, as chance has it: more than is looked for here.
    env = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"}
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True,
                          text=True, env=env, timeout=300)
    assert done.returncode == 0, done.stderr
    few, many = (line.split() for line in done.stdout.splitlines()[1::2])
    assert few[0] == many[0] == "0" and len(list((tmp_path / "out60").iterdir())) == 60
    assert int(many[1]) - int(few[1]) < 30e6, (few, many)


def test_labels_of_models(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("a/run", "b/run", "b/other", "input", "zerodce"):
        os.makedirs(name)
    here_ = tmp_path.name
    cases = {("a/run", "b/other/"): ["run", "other"],
             ("a/run", str(tmp_path / "b" / "run")): ["a/run", "b/run"],
             ("zerodcepp", "a/run"): ["zerodcepp", "run"],
             ("input", "a/run"): [f"{here_}/input", "run"]}
    for models, expected in cases.items():
        assert folder.labels(models) == [name.replace("/", os.sep) for name in expected]
    twice = folder.labels(["a/run", "./a/run"])  # one folder by two names
    assert len(set(twice)) == 2 and all("run" in name for name in twice)


def test_convert_says_what_it_wrote(tmp_path):
    save_file(official(), tmp_path / "a.safetensors")
    for presets, said in (((), "no presets"), (("--presets", "paper"), "presets paper")):
        done = run("convert", "zerodce", tmp_path / "a.safetensors", *presets, "-o",
                   tmp_path / "out.safetensors", "--overwrite")
        assert done.returncode == 0
        assert done.stdout == f"wrote {tmp_path / 'out.safetensors'}: curve; {said}\n"


def test_the_other_commands():
    models = run("models")
    assert models.returncode == 0 and "zerodce" in models.stdout
    for name in weights.list_weights():
        assert name in models.stdout
    default = [line for line in models.stdout.splitlines() if line.endswith("(default)")]
    assert [line.split()[0] for line in default] == [weights.DEFAULT]
    doctor = run("doctor")
    assert doctor.returncode == 0 and f"jax {jax.__version__}" in doctor.stdout
    assert os.environ["JAX_COMPILATION_CACHE_DIR"] in doctor.stdout


def test_help_and_import_are_light():
    code = ("import sys, lljax, lljax.cli\n"
            "assert lljax.__version__\n"
            "try:\n    lljax.cli.main(['lljax', '--help'])\n"
            "except SystemExit as error:\n    assert not error.code\n"
            "heavy = {'jax', 'flax', 'numpy', 'PIL', 'orbax', 'tensorflow'} & set(sys.modules)\n"
            "assert not heavy, heavy\n")
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert "enhance" in result.stdout


def test_using_weights_imports_neither_tensorflow_nor_orbax(model):
    code = f"import sys, lljax\nlljax.load({str(model)!r})\n" \
           "assert not {'tensorflow', 'orbax'} & set(sys.modules)\n"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
