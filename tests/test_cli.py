"""The installed command, run as a user runs it, on a folder of awkward files."""

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

from lljax import config as config_lib
from lljax import method as method_lib
from lljax import weights
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
        (("enhance", ugly, "-o", ugly, "--model", model, "--overwrite"), "same file"),
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
