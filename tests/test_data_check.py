"""`lljax data check` on folders with planted faults: each is found, and nothing else."""

import pytest
from PIL import Image

from lljax import cli
from lljax.data import check
from lljax.errors import InputError
from tests.test_datasets import draw, make


@pytest.fixture
def pairs(tmp_path):
    """Four sound pairs in low/ and high/."""
    for number in range(4):
        scene(tmp_path / "low" / f"{number}.png", number, 0.2)
        scene(tmp_path / "high" / f"{number}.png", number, 0.8)
    return tmp_path


def scene(path, seed, brightness, size=(40, 48)):
    """A picture of smooth areas at a brightness: a scene at an exposure."""
    path.parent.mkdir(parents=True, exist_ok=True)
    areas = draw(path, seed, (16, 17))
    dimmed = Image.fromarray((areas * brightness).astype("uint8"))
    dimmed.resize(size[::-1], Image.Resampling.NEAREST).save(path)


def run(folder, *arguments, source="pairs"):
    return cli.main(["lljax", "data", "check", source, "--low", str(folder / "low"),
                     "--high", str(folder / "high"), *arguments])


def found(folder, **kwargs):
    report = check.check("pairs", low=str(folder / "low"), high=str(folder / "high"), **kwargs)
    return report.problems, "\n".join(report.lines)


def test_sound_pairs_have_no_problems(pairs, capsys):
    assert run(pairs) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "low: 4 pictures (4 of 48x40)" and "high: 4 pictures (4 of 48x40)" in lines
    assert lines[-1] == "pairs: 8 pictures, no problems"
    assert len(lines) == 2 * (2 + check.BINS) + 1


def test_brightness_is_that_of_the_pictures(tmp_path):
    for name, value in (("a", 10), ("b", 20), ("c", 200)):
        path = tmp_path / "low" / f"{name}.png"
        path.parent.mkdir(exist_ok=True)
        Image.new("RGB", (8, 6), (value,) * 3).save(path)
    lines = check.check("folder", low=str(tmp_path / "low")).lines
    assert lines[1] == "  mean luma 76.7 of 255; darkest 10.0 (a.png), brightest 200.0 (c.png)"
    rows = {line.split()[0]: line.split()[3] for line in lines[2:2 + check.BINS]}
    assert rows == {"0": "2", "32": "0", "64": "0", "96": "0", "128": "0", "160": "0", "192": "1",
                    "224": "0"}


def test_a_broken_file_is_named(pairs):
    path = pairs / "low" / "2.png"
    path.write_bytes(path.read_bytes()[:80])
    problems, text = found(pairs)
    assert problems == {"broken": 1} and str(path) in text
    assert text.endswith("pairs: 8 pictures, 1 broken") and run(pairs) == 1


def test_files_without_exactly_one_partner_are_named(pairs):
    (pairs / "low" / "0.png").unlink()
    scene(pairs / "low" / "1.bmp", 50, 0.2)
    problems, text = found(pairs)
    assert problems == {"unmatched": 4}
    for name in ("high/0.png", "low/1.png", "low/1.bmp", "high/1.png"):
        assert f"  {pairs / name}" in text
    assert run(pairs) == 1


def test_pairs_of_unequal_size_are_named(pairs):
    scene(pairs / "high" / "3.png", 3, 0.8, (40, 40))
    problems, text = found(pairs)
    assert problems == {"of unequal size": 1}
    assert "  3: low is 48x40, high 40x40" in text and run(pairs) == 1


def test_duplicates_are_shown_and_are_no_problem(pairs):
    for role, brightness in (("low", 0.2), ("high", 0.8)):
        scene(pairs / role / "again.png", 1, brightness)
    scene(pairs / "low" / "4.png", 2, 0.3)
    scene(pairs / "high" / "4.png", 60, 0.8)
    problems, text = found(pairs)
    assert problems == {} and run(pairs) == 0
    assert "groups with the same pixels, in low (1):\n  1 = again" in text
    assert "groups with the same pixels, in high (1):\n  1 = again" in text
    assert "groups of one scene, in low (1):\n  2 ~ 4" in text


def test_leaks_into_another_folder_are_found_at_any_exposure(pairs):
    other = pairs / "other"
    scene(other / "copy.png", 1, 0.2)
    scene(other / "dimmed.png", 2, 0.4)
    scene(other / "new.png", 70, 0.4)
    problems, text = found(pairs, against=str(other))
    assert problems == {"leaking": 2}
    assert "  copy.png = 1 (the same pixels)" in text and "  dimmed.png ~ 2 (one scene" in text
    assert run(pairs, "--against", str(other)) == 1


def test_every_kind_of_problem_is_counted_at_once(pairs):
    (pairs / "low" / "0.png").write_bytes(b"")
    (pairs / "high" / "1.png").unlink()
    scene(pairs / "high" / "3.png", 3, 0.8, (40, 40))
    scene(pairs / "other" / "copy.png", 2, 0.2)
    _, text = found(pairs, against=str(pairs / "other"))
    assert text.endswith("pairs: 6 pictures, 1 broken, 1 unmatched, 1 of unequal size, 1 leaking")


def test_pictures_without_structure_are_not_one_scene(tmp_path):
    for number, value in enumerate((5, 50, 250)):
        draw(tmp_path / "low" / "x.png", 0)  # makes the folder
        Image.new("RGB", (30, 30), (value,) * 3).save(tmp_path / "low" / f"{number}.png")
    report = check.check("folder", low=str(tmp_path / "low"))
    assert not any("scene" in line for line in report.lines)


@pytest.mark.parametrize("name", ["lol_v1", "enlighten_unpaired"])
def test_a_published_set_is_checked_before_and_after_preparation(name, tmp_path, monkeypatch,
                                                                 capsys):
    monkeypatch.setenv("LLJAX_DATA", str(tmp_path / "cache"))
    make(name, tmp_path / "in")
    assert cli.main(["lljax", "data", "check", name, "--root", str(tmp_path / "in")]) == 0
    before = capsys.readouterr().out
    assert not (tmp_path / "cache").exists() and "train low: 3 pictures (3 of 24x20)" in before
    assert cli.main(["lljax", "data", "prepare", name, "--root", str(tmp_path / "in")]) == 0
    assert f"{name} is prepared in {tmp_path / 'cache'}" in capsys.readouterr().out
    assert cli.main(["lljax", "data", "check", name]) == 0
    assert capsys.readouterr().out == before


def test_leaks_between_train_and_test_are_found(tmp_path):
    make("lol_v1", tmp_path)
    train, test = tmp_path / "our485", tmp_path / "eval15"
    (test / "high" / "22.png").write_bytes((train / "high" / "5.png").read_bytes())
    report = check.check("lol_v1", root=str(tmp_path))
    assert report.problems == {"leaking": 1}
    assert "  22 = 5 (the same pixels)" in report.lines


def test_joined_sources_are_checked_together(pairs):
    report = check.check("demo+pairs", low=str(pairs / "low"), high=str(pairs / "high"))
    text = "\n".join(report.lines)
    assert not report.problems
    for title in ("demo train low", "demo test high", "pairs low", "pairs high"):
        assert f"{title}: " in text
    with pytest.raises(InputError, match="--root does not go with demo.pairs"):
        check.check("demo+pairs", root=str(pairs))
    with pytest.raises(InputError, match='"pears".*"pairs"'):
        check.check("demo+pears")


def test_the_demo_set_is_sound(capsys):
    assert cli.main(["lljax", "data", "check", "demo"]) == 0
    assert capsys.readouterr().out.endswith("demo: 192 pictures, no problems\n")


@pytest.mark.parametrize("arguments, message", [
    (["check", "pears"], 'Did you mean "pairs"'),
    (["chek", "demo"], "chek"),
    (["check", "demo", "--low", "x"], "--low does not go with demo"),
    (["check", "folder"], "give --low"),
    (["check", "folder", "--low", "nowhere"], "no folder 'nowhere'"),
    (["check", "pairs", "--low", "."], "give --high|no pictures"),
    (["check", "folder", "--lwo", "x"], '"--low"'),
    (["prepare", "demo"], "published data set"),
    (["prepare", "lol_v1", "--low", "x"], "--root and --prepared only"),
])
def test_mistakes_are_one_line(arguments, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=message) as error:
        cli.main(["lljax", "data", *arguments])
    assert "\n" not in str(error.value)
