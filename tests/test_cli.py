"""The installed command, run as a user runs it, on a folder of awkward files."""

import io
import json
import os
import pathlib
import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import save_file

from lljax import cli, images, weights
from lljax import config as config_lib
from lljax import method as method_lib
from lljax.errors import InputError
from lljax.inference import folder
from tests.test_convert import official

BAD = ("cut.jpg", "text.png", "empty.bmp", "deep.png")


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


@pytest.fixture
def ugly(tmp_path):
    folder = tmp_path / "in"
    (folder / "sub" / "deeper").mkdir(parents=True)
    rng = np.random.default_rng(0)

    def image(width, height):
        return Image.fromarray(rng.integers(0, 90, (height, width, 3)).astype(np.uint8))

    exif = Image.Exif()
    exif[0x0112] = 6
    image(61, 97).save(folder / "odd.png")
    image(1, 1).save(folder / "dot.bmp")
    image(40, 30).convert("L").save(folder / "grey.jpg")
    alpha = image(33, 20).convert("RGBA")
    alpha.putalpha(120)
    alpha.save(folder / "alpha.png")
    image(33, 20).convert("P").save(folder / "palette.png")
    image(64, 32).save(folder / "turned.jpg", exif=exif)
    image(25, 26).save(folder / "UPPER.JPG")
    image(19, 18).convert("CMYK").save(folder / "sub" / "deeper" / "cmyk.tif")
    Image.fromarray(rng.integers(0, 9999, (7, 9)).astype(np.uint16)).save(
        folder / "sub" / "grey16.png")
    image(50, 50).save(folder / "cut.jpg")
    (folder / "cut.jpg").write_bytes((folder / "cut.jpg").read_bytes()[:-500])
    (folder / "text.png").write_text("no picture")
    (folder / "empty.bmp").touch()
    Image.fromarray(rng.random((4, 4)).astype(np.float32)).save(folder / "deep.tif")
    (folder / "deep.tif").rename(folder / "deep.png")
    (folder / "notes.txt").write_text("not an input")
    (folder / ".hidden.png").write_text("not an input")
    return folder


def tree(folder):
    return {str(p.relative_to(folder)): p.read_bytes()
            for p in sorted(pathlib.Path(folder).rglob("*")) if p.is_file()}


def test_a_folder_of_awkward_files(ugly, model, tmp_path):
    before, out = tree(ugly), tmp_path / "out"
    result = run("enhance", ugly, "-o", out, "--model", model)
    assert result.returncode == 1
    assert result.stdout.splitlines()[-1].startswith("9 enhanced, 4 failed")
    lines = result.stderr.splitlines()
    assert len(lines) == len(BAD) and all(line.startswith("error: ") for line in lines), lines
    for name in BAD:
        assert sum(name in line for line in lines) == 1
    assert tree(ugly) == before  # inputs are not touched

    expected = {"odd.png": ("PNG", "RGB", (61, 97)), "dot.bmp": ("BMP", "RGB", (1, 1)),
                "grey.jpg": ("JPEG", "L", (40, 30)), "alpha.png": ("PNG", "RGBA", (33, 20)),
                "palette.png": ("PNG", "RGB", (33, 20)), "turned.jpg": ("JPEG", "RGB", (32, 64)),
                "UPPER.JPG": ("JPEG", "RGB", (25, 26)),
                os.path.join("sub", "deeper", "cmyk.tif"): ("TIFF", "RGB", (19, 18)),
                os.path.join("sub", "grey16.png"): ("PNG", "I;16", (9, 7))}
    assert set(tree(out)) == set(expected)
    for name, (form, mode, size) in expected.items():
        with Image.open(out / name) as image:
            assert (image.format, image.mode, image.size) == (form, mode, size), name
            assert image.getexif().get(0x0112, 1) == 1
            bright = np.asarray(image.convert("RGB")).mean() if mode != "I;16" else None
        if bright is not None:
            with Image.open(ugly / name) as image:
                assert bright > 1.2 * np.asarray(image.convert("RGB")).mean(), name
    assert Image.open(out / "alpha.png").getextrema()[3] == (120, 120)

    first = tree(out)
    again = run("enhance", ugly, "-o", out, "--model", model)
    assert again.returncode == 1 and again.stdout.startswith("0 enhanced, 13 failed")
    assert again.stderr.count("exists already; --overwrite") == 9
    assert tree(out) == first
    over = run("enhance", ugly, "-o", out, "--model", model, "--overwrite", "--quiet")
    assert over.stdout.startswith("9 enhanced, 4 failed")
    assert tree(out) == first  # the same seed gives the same bytes


def test_one_file_to_one_file(ugly, model, tmp_path):
    result = run("enhance", ugly / "UPPER.JPG", "-o", tmp_path / "b.png", "--model", model,
                 module=False)
    assert result.returncode == 0 and result.stderr == ""
    with Image.open(tmp_path / "b.png") as image:
        assert (image.format, image.size) == ("PNG", (25, 26))


def test_an_output_folder_inside_the_input_is_no_input(ugly, model):
    for _ in range(2):
        run("enhance", ugly / "sub", "-o", ugly / "sub" / "out", "--model", model, "--overwrite")
    assert set(tree(ugly / "sub" / "out")) == {"grey16.png", os.path.join("deeper", "cmyk.tif")}


def test_heic_and_raw_get_suffixes_that_can_be_written(ugly, tmp_path):
    for name in ("IMG_1.HEIC", "IMG_1.CR2", "IMG_2.nef"):
        (ugly / "sub" / name).touch()
    jobs = folder.plan([str(ugly / "sub")], str(tmp_path / "out")).jobs
    names = {os.path.basename(job.file): os.path.basename(job.target) for job in jobs}
    assert names == {"IMG_1.HEIC": "IMG_1.jpg", "IMG_1.CR2": "IMG_1.tif", "IMG_2.nef": "IMG_2.tif",
                     "cmyk.tif": "cmyk.tif", "grey16.png": "grey16.png"}
    (ugly / "sub" / "IMG_1.jpg").touch()  # as a phone puts it beside its HEIC
    planned = folder.plan([str(ugly / "sub")], str(tmp_path / "out"))
    assert "IMG_1.jpg" in {os.path.basename(job.file) for job in planned.jobs}
    ((job, message),) = planned.refused
    assert os.path.basename(job.file) == "IMG_1.HEIC" and "by itself, into another" in message
    (ugly / "sub" / "IMG_1.jpg").unlink()
    replaced = folder.plan([str(ugly / "sub")], None)
    assert len(replaced.jobs) == 2 and len(replaced.refused) == 3
    assert all("cannot be replaced, its format is not written" in message
               for _, message in replaced.refused)


def test_maps_beside_the_results(ugly, model, tmp_path):
    before, plain, out = tree(ugly), tmp_path / "plain", tmp_path / "out"
    run("enhance", ugly, "-o", plain, "--model", model)
    done = run("enhance", ugly, "-o", out, "--model", model, "--save-maps")
    assert done.returncode == 1 and done.stdout.startswith("9 enhanced, 4 failed")
    assert tree(ugly) == before
    maps = {f"{os.path.splitext(name)[0]}_curves.png": name for name in tree(plain)}
    assert set(tree(out)) == set(tree(plain)) | set(maps)
    for name, content in tree(plain).items():
        assert tree(out)[name] == content, name  # bit for bit
    for name, result in maps.items():
        with Image.open(out / name) as image, Image.open(out / result) as enhanced:
            assert (image.format, image.mode, image.size) == ("PNG", "RGB", enhanced.size)
            assert np.asarray(image).mean() > 150  # these curves brighten

    (out / "odd.png").unlink()
    again = run("enhance", ugly / "odd.png", "-o", out, "--model", model, "--save-maps")
    assert again.returncode == 1 and "odd_curves.png exists already" in again.stderr
    assert not (out / "odd.png").exists()
    single = run("enhance", ugly / "odd.png", "-o", out / "odd.png", "--model", model,
                 "--save-maps", "--overwrite")
    assert single.returncode == 0 and tree(out)["odd.png"] == tree(plain)["odd.png"]


def test_maps_take_nobodys_place(ugly, model, tmp_path):
    shutil.copy(ugly / "odd.png", ugly / "turned_Curves.png")  # on many systems the same name
    shutil.copy(ugly / "odd.png", ugly / "odd.jpg")
    before = tree(tmp_path)
    cases = [
        ((ugly / "turned.jpg", ugly / "turned_Curves.png", "-o", tmp_path / "out"),
         "both a map of", "and the result of"),
        ((ugly / "odd.jpg", ugly / "odd.png", "-o", tmp_path / "out"),
         f"a map of {ugly / 'odd.png'} and a map of {ugly / 'odd.jpg'}"),
        ((ugly / "turned_Curves.png", "-o", ugly / "turned.png", "--overwrite"),
         f"a map of {ugly / 'turned_Curves.png'} and an input"),
    ]
    for arguments, *messages in cases:
        done = run("enhance", *arguments, "--model", model, "--save-maps")
        assert done.returncode == 2 and done.stderr.count("\n") == 1, done
        assert all(message in done.stderr for message in messages), done.stderr
        assert tree(tmp_path) == before


def test_mistakes_are_one_line_before_any_work(ugly, model, tmp_path):
    out = tmp_path / "out"
    one = ugly / "odd.png"
    (tmp_path / "other").mkdir()
    shutil.copy(one, tmp_path / "other" / "ODD.png")
    cases = [
        (("enhanse", one), 'Did you mean "enhance"'),
        (("enhance", one, "-o", out, "--modle", model), 'Did you mean "--model"'),
        (("enhance", one), "-o/--output"),
        (("enhance", one, tmp_path / "missing.png", "-o", out, "--model", model), "missing.png"),
        (("enhance", one, "-o", out, "--model", "nothing"), "nothing"),
        (("enhance", one, "-o", out, "--model", one), "lljax convert"),
        (("enhance", one, tmp_path / "other", "-o", out, "--model", model), "both be written"),
        (("enhance", ugly, "-o", ugly, "--model", model, "--overwrite"), "same folder"),
        (("enhance", tmp_path / "other", one, "-o", one, "--model", model), "is a file"),
        (("enhance", out.parent / "none", "-o", out, "--model", model), "none"),
        (("enhance", one, "-o", out, "--save-map", "--model", model), 'Did you mean "--save-maps"'),
        (("enhance", one, "-o", one / "in", "--model", model), "choose another -o"),
        (("convert", "zerodse", one, "-o", tmp_path / "x.safetensors"), 'Did you mean "zerodce"'),
    ]
    before = tree(tmp_path)
    for arguments, message in cases:
        result = run(*arguments)
        assert result.returncode == 2, (arguments, result)
        assert result.stderr.count("\n") == 1 and message in result.stderr, result.stderr
    assert tree(tmp_path) == before and not out.exists()


def here(*arguments):
    """The command without a process of its own."""
    return cli.main(["lljax", *map(str, arguments)])


@pytest.fixture
def two(tmp_path):
    folder = tmp_path / "two"
    (folder / "sub").mkdir(parents=True)
    rng = np.random.default_rng(0)
    for name in ("a.png", "sub/b.png"):
        Image.fromarray(rng.integers(0, 90, (64, 64, 3)).astype(np.uint8)).save(folder / name)
    return folder


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
    (two / "a.png").chmod(0o640)
    here("enhance", two, "-o", tmp_path / "out", "--model", model)
    before = tree(two)
    assert here("enhance", two, two / "a.png", "--in-place", "--model", model) == 1
    assert "2 enhanced, 1 failed; in place" in capsys.readouterr().out
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
    shutil.copy(two / "a.png", two / "a.bmp")
    with pytest.raises(InputError, match="both be written to"):
        here("enhance", two, "-o", tmp_path / "c", "--compare", "all")


@pytest.mark.parametrize("options, message", [
    (("--strength", "1.5"), "strength is 1.5"), (("--strength", "much"), "strength is 'much'"),
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


@pytest.mark.parametrize("arguments, message", [
    (("-",), "give -o"), (("-", ".", "-o", "folder"), "- stands for standard input"),
    (("-", "-o", "folder"), "has no name"),
    (("-", "--in-place"), "cannot be replaced"), ((".", "-o", "-"), "give one input file"),
    (("-", "-o", "-", "--save-maps"), "leave out --save-maps"),
    (("-", "-o", "-", "--json", "-"), "leave out --json -")])
def test_streams_that_cannot_be(arguments, message):
    with pytest.raises(InputError, match=message):
        here("enhance", *arguments)


def test_memory_does_not_grow_with_the_number_of_pictures(tmp_path):
    """At most a few pictures are read and not yet written."""
    for i in range(30):
        Image.new("RGB", (8, 8)).save(tmp_path / f"{i}.png")
    (tmp_path / "out").mkdir()
    jobs = folder.plan([str(tmp_path)], str(tmp_path / "out")).jobs
    count = {"read": 0, "written": 0, "most": 0}
    real_read, real_write = images.read, images.write

    def read(*arguments):
        count["read"] += 1
        count["most"] = max(count["most"], count["read"] - count["written"])
        return real_read(*arguments)

    def write(*arguments):
        real_write(*arguments)
        count["written"] += 1

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(images, "read", read)
        patch.setattr(images, "write", write)
        done = list(folder.run(jobs, lambda picture: (picture, {})))
    assert [one.job for one in done] == jobs and len(done) == count["written"] == 30
    assert count["most"] <= 3 * max(2, min(8, (os.cpu_count() or 1) // 2)) + 2


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
