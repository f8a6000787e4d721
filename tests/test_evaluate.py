"""Evaluation: numbers against direct computation, and what happens to what cannot be scored."""

import csv
import json
import math
import pathlib
import subprocess
import sys

import numpy as np
import pytest

from lljax.errors import InputError
from lljax.evaluation import metrics
from lljax.evaluation.baselines import BASELINES
from lljax.evaluation.evaluate import (
    _row_names,
    evaluate,
    higher_is_better,
    interval,
    main,
    summarise,
)
from lljax.evaluation.report import markdown, table

ROOT = pathlib.Path(__file__).parent.parent


def make_pairs(count, size=(24, 30)):
    """Made-up pairs: a textured reference and a dark, noisy copy."""
    rng = np.random.default_rng(3)
    pairs = []
    for i in range(count):
        high = rng.integers(40, 256, (*size, 3)).astype(np.uint8)
        low = (high * rng.uniform(0.1, 0.3) + rng.uniform(0, 3, high.shape)).astype(np.uint8)
        pairs.append({"name": f"{i:03d}.png", "low": low, "high": high})
    return pairs


def brighten(picture):
    return np.clip(picture.astype(int) * 4, 0, 255).astype(np.uint8)


def test_numbers_are_those_of_the_metrics():
    pairs = make_pairs(5)
    results = evaluate({"x4": brighten}, pairs)
    assert results.systems == ["x4", *BASELINES]
    assert results.names == [pair["name"] for pair in pairs]
    assert results.values.shape == (7, 5, 6) and results.values.dtype == np.float64
    psnr = [metrics.psnr(brighten(p["low"]), p["high"]) for p in pairs]
    ssim = [metrics.ssim(p["low"], p["high"]) for p in pairs]
    np.testing.assert_array_equal(results.of("x4", "psnr"), psnr)
    np.testing.assert_array_equal(results.of("identity", "ssim"), ssim)
    summary = results.summary("x4")["psnr"]
    assert summary.mean == pytest.approx(sum(psnr) / 5, rel=1e-12)
    assert summary.sd == pytest.approx(math.sqrt(sum((v - summary.mean) ** 2 for v in psnr) / 4))
    assert summary.n == 5 and summary.n_inf == 0 and summary.protocol == "psnr[rgb,u8]"
    assert results.means("x4")["psnr"] == summary.mean


def test_the_interval_is_sane_and_repeats():
    values = np.random.default_rng(0).normal(20, 2, 40)
    low, high = interval(values)
    assert low < values.mean() < high
    # at n = 40 a bootstrap interval is close to the normal one
    assert high - low == pytest.approx(2 * 1.96 * values.std(ddof=1) / np.sqrt(40), rel=0.1)
    assert interval(values) == (low, high)
    assert interval(values, seed=1) != (low, high)
    assert interval(np.full(7, 3.0)) == (3.0, 3.0)
    assert interval(values[:1]) is None


def test_infinite_scores_are_kept_and_said(tmp_path):
    pairs = make_pairs(3)
    pairs[1]["low"] = pairs[1]["high"].copy()
    results = evaluate({}, pairs, out=str(tmp_path))
    summary = results.summary("identity")["psnr"]
    assert summary.mean == math.inf and summary.n_inf == 1
    assert summary.sd is None and summary.ci95 is None
    assert results.summary("identity")["ssim"].n_inf == 0
    assert "inf (1 of 3)" in table(results) and "inf (1 of 3)" in markdown(results)

    def refuse(literal):
        raise AssertionError(f"{literal} is not JSON")

    text = (tmp_path / "results.json").read_text()
    saved = json.loads(text, parse_constant=refuse)["systems"]["identity"]["psnr"]
    assert saved == {"mean": "inf", "sd": None, "ci95": None, "n": 3, "n_inf": 1,
                     "protocol": "psnr[rgb,u8]"}
    assert float(saved["mean"]) == math.inf
    rows = list(csv.DictReader((tmp_path / "per_image.csv").open()))
    assert float(rows[1]["psnr"]) == math.inf


def test_one_picture_has_no_interval():
    results = evaluate({"x4": brighten}, make_pairs(1))
    summary = results.summary("x4")["mae"]
    assert summary.sd is None and summary.ci95 is None and summary.n == 1
    assert "[" not in table(results).split("\n")[3]  # the row of x4
    assert "no interval" in table(results)


def test_files(tmp_path):
    pairs = make_pairs(4)
    results = evaluate({"x4": brighten}, pairs, out=str(tmp_path / "new" / "eval"), limit=3,
                       info={"source": "made up", "seed": 7, "command": "evaluate.py"})
    folder = tmp_path / "new" / "eval"
    assert sorted(p.name for p in folder.iterdir()) == [
        "contact_sheet.png", "per_image.csv", "results.json", "results.md", "results.tex"]
    assert (folder / "results.md").read_text() == markdown(results) + "\n"
    saved = json.loads((folder / "results.json").read_text())
    assert list(saved["systems"]) == results.systems
    for system in results.systems:
        for key, summary in results.summary(system).items():
            entry = saved["systems"][system][key]
            assert entry["mean"] == summary.mean and entry["sd"] == summary.sd
            assert entry["ci95"] == list(summary.ci95) and entry["n"] == 3
            assert entry["protocol"] == metrics.METRICS[key].protocol
    assert saved["source"] == "made up" and saved["seed"] == 7
    assert saved["pictures"] == 3 and saved["pictures_in_source"] == 4
    assert saved["versions"]["numpy"] == np.__version__ and saved["date"].endswith("+00:00")
    rows = list(csv.DictReader((folder / "per_image.csv").open()))
    assert len(rows) == len(results.systems) * 3
    assert [row["name"] for row in rows if row["system"] == "x4"] == results.names
    again = [float(row["ssim_gtm"]) for row in rows if row["system"] == "gamma 0.5"]
    np.testing.assert_array_equal(again, results.of("gamma 0.5", "ssim_gtm"))


def test_limit_and_baselines():
    pairs = make_pairs(3)
    results = evaluate({"x4": brighten}, pairs, limit=2, baselines=False)
    assert results.systems == ["x4"] and results.names == ["000.png", "001.png"]
    assert "the first 2 of 3 pictures" in table(results)
    assert len(evaluate({}, pairs, limit=9).names) == 3
    with pytest.raises(InputError, match="limit is -1"):
        evaluate({}, pairs, limit=-1)


def test_tables_show_every_system_metric_and_protocol():
    results = evaluate({"x4": brighten, "a|b": brighten}, make_pairs(3))
    text, rows = table(results), markdown(results).split("\n")
    for card in results.metrics:
        assert card.heading in text and card.protocol in text
        assert any(row.startswith("Protocols:") and f"`{card.protocol}`" in row for row in rows)
    assert text.count("\nx4 ") >= 2  # as it is, and after gt-mean
    for system in results.systems[1:]:
        assert text.count(f"\n{system} ") >= 4  # and both of them minus the first
    summary = results.summary("x4")["psnr"]
    assert f"{'x4':10}  {summary.mean:.2f} \u00b1 {summary.sd:.2f} [" in text
    assert max(map(len, text.split("\n"))) <= 100
    grid = [row for row in rows if row.startswith("|")]
    assert {row.replace("\\|", "").count("|") for row in grid} == {5}
    assert grid[1] == "|---|---|---|---|" and "a\\|b" in grid[3]


def test_unequal_sizes_are_all_named_before_anything_is_enhanced(tmp_path):
    pairs = make_pairs(5)
    pairs[1]["high"] = pairs[1]["high"][:-1]
    pairs[4]["high"] = pairs[4]["high"].transpose(1, 0, 2)
    calls = []
    with pytest.raises(InputError) as caught:
        evaluate({"spy": lambda p: calls.append(p) or p}, pairs, out=str(tmp_path / "out"))
    message = str(caught.value)
    assert "2 of 5" in message and "\n" not in message
    assert "001.png: sizes differ: low is 30x24 and high is 30x23" in message
    assert "004.png" in message and "24x30" in message and "000.png" not in message
    assert not calls and not (tmp_path / "out").exists()


def test_unreadable_and_tiny_pictures_are_named():
    class Broken:
        def __len__(self):
            return 3

        def __getitem__(self, i):
            if i == 1:
                raise InputError("b.png is cut off")
            return make_pairs(1, (10, 30) if i == 2 else (12, 30))[0] | {"name": f"{i}.png"}

    with pytest.raises(InputError, match=r"2 of 3.*b\.png is cut off; 2\.png.*11 px"):
        evaluate({}, Broken())


def test_many_bad_pictures_are_counted():
    pairs = make_pairs(25)
    for pair in pairs:
        pair["high"] = pair["high"][1:]
    with pytest.raises(InputError, match="25 of 25.*019.png.*and 5 more"):
        evaluate({}, pairs)


@pytest.mark.parametrize("system, reason", [
    (lambda p: p[:-1], "30x23"), (lambda p: p / 255, "float64"), (lambda p: p[..., 0], "RGB")])
def test_a_system_that_returns_something_else_is_named(tmp_path, system, reason):
    with pytest.raises(InputError, match=f"odd on 000.png: .*{reason}"):
        evaluate({"odd": system}, make_pairs(2), out=str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_a_bug_in_a_system_is_not_hidden():
    with pytest.raises(ZeroDivisionError) as caught:
        evaluate({"bug": lambda p: 1 // 0}, make_pairs(1))
    assert caught.value.__notes__ == ["while evaluating bug on 000.png"]


def test_nothing_to_do_is_said():
    with pytest.raises(InputError, match="no pairs"):
        evaluate({"x4": brighten}, [])
    with pytest.raises(InputError, match="at least one system"):
        evaluate({}, make_pairs(1), baselines=False)
    for name in ("identity", "low", "reference"):
        with pytest.raises(InputError, match=f"'{name}'"):
            evaluate({name: brighten}, make_pairs(1))
    with pytest.raises(InputError, match="give out"):
        evaluate({"x4": brighten}, make_pairs(1), with_report=True)


def test_unknown_names_are_refused():
    results = evaluate({"x4": brighten}, make_pairs(1))
    with pytest.raises(InputError, match='Did you mean "psnr"'):
        results.of("x4", "pnsr")
    with pytest.raises(InputError, match="unknown system"):
        results.means("x5")
    with pytest.raises(InputError, match="unknown metric"):
        higher_is_better("niqe")
    assert higher_is_better("ssim") and not higher_is_better("mae")


def test_an_output_folder_that_cannot_be_is_said(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot write results"):
        evaluate({}, make_pairs(1), out=str(tmp_path / "file" / "eval"))


def test_summary_without_pictures_of_spread():
    summary = summarise(np.array([1.0, 2.0]), "p")
    assert summary.mean == 1.5 and summary.sd == pytest.approx(math.sqrt(0.5))
    assert summary.ci95 == (1.0, 2.0)


def test_row_names_are_short_and_unique():
    assert _row_names(["w/a", "v/b.safetensors"]) == {"a": "w/a", "b": "v/b.safetensors"}
    assert _row_names(["x/run/", "y/run"]) == {"x/run": "x/run/", "y/run": "y/run"}
    assert _row_names([]) == {}
    with pytest.raises(InputError, match="given 2 times"):
        _row_names(["a", "a"])
    with pytest.raises(InputError, match="the same"):
        _row_names(["a", "./a"])


BAD_FLAGS = [
    ([], "--workdir W or --weights FILE"),
    (["--wokdir", "x"], 'Did you mean "--workdir"'),
    (["--weights"], "expected one argument"),
    (["--weights", "x.safetensors", "--limit", "many"], "invalid int value: 'many'"),
    (["--source", "demo", "--limit=-2"], "--limit is -2"),
    (["--source", "demo", "--split", "tests"], 'Did you mean "test"'),
    (["--source", "par"], 'Did you mean "pairs"'),
    (["--source", "foldr"], 'Did you mean "folder"'),
    (["--low", "x"], "--source folder to score without references"),
    (["--source", "demo", "--average", "bth"], 'Did you mean "both"'),
    (["--weights", "x.safetensors", "--average", "both"], "holds one set of parameters"),
    (["--workdir", "x", "--select", "best"], 'unknown --select "best"'),
    (["--weights", "x.safetensors", "--select", "val"], "holds one step"),
    (["--source", "demo", "--low", "x"], "go with --source pairs"),
    (["--source", "demo", "--metrics", "psrn"], 'Did you mean "psnr"'),
    (["--source", "demo", "--protocol", "lflow"], 'Did you mean "llflow"'),
    (["--source", "demo", "--niqe", "no/such.mat"], "no file 'no/such.mat'"),
    (["--source", "demo", "--lpips-alex", "a.pth"], "expected 2 arguments"),
    (["--source", "demo", "--baselines", "HEE", "--limit", "1"], 'Did you mean "HE"'),
    (["--source", "demo", "--root", "x"], "--root and --prepared say where published sets are"),
    (["--low", "x", "--high", "y", "--prepared", "z"], "say where published sets are"),
    (["--source", "lol_v1", "--root", "no/such", "--prepared", "z"], "lol_v1: "),
    (["--source", "demo", "--seed", "-1"], "'-1' is no seed"),
    (["x.safetensors"], "unexpected argument"),
    (["--source", "demo", "--out", "a", "--report", "b"], "give one"),
    (["--workdir", "no/such/run"], "no/such/run"),
    (["--low", "no/such/folder", "--high", "no/such/folder"], "no/such/folder"),
]


@pytest.mark.parametrize("argv, part", BAD_FLAGS, ids=[" ".join(a) or "none" for a, _ in BAD_FLAGS])
def test_bad_flags_are_one_line(argv, part, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError) as caught:
        main(["evaluate.py", *argv])
    assert part in str(caught.value) and "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("argv, part", [BAD_FLAGS[0], BAD_FLAGS[1]], ids=["none", "misspelt"])
def test_the_command_exits_2_with_one_line(argv, part, tmp_path):
    done = subprocess.run([sys.executable, ROOT / "evaluate.py", *argv], cwd=tmp_path,
                          capture_output=True, text=True)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith("error: ") and part in done.stderr
    assert done.stderr.count("\n") == 1 and "Traceback" not in done.stderr


def write_pairs(folder, count=3):
    image = pytest.importorskip("PIL.Image")
    for role in ("low", "high"):
        (folder / role).mkdir(parents=True)
        for pair in make_pairs(count):
            image.fromarray(pair[role]).save(folder / role / pair["name"])
    return ["--low", str(folder / "low"), "--high", str(folder / "high")]


def test_the_command_on_folders(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    flags = write_pairs(tmp_path / "eval15")
    assert main(["evaluate.py", *flags]) == 0
    shown = capsys.readouterr().out
    assert "identity" in shown and "contact_sheet.png to eval_eval15" in shown
    saved = json.loads((tmp_path / "eval_eval15" / "results.json").read_text())
    expected = evaluate({}, make_pairs(3))
    for system in expected.systems:
        for key, mean in expected.means(system).items():
            assert saved["systems"][system][key]["mean"] == pytest.approx(mean, rel=1e-12)
    assert "--low" in saved["command"] and str(tmp_path / "eval15" / "low") in saved["source"]


def test_the_command_opens_models_and_chooses_where_to_write(tmp_path, monkeypatch, capsys):
    from lljax.evaluation import selection
    from lljax.inference import enhancer
    monkeypatch.chdir(tmp_path)
    opened = []

    def load(path, seed, settings, averaged, step):
        assert averaged and not settings
        opened.append((path, seed, step))
        return brighten

    monkeypatch.setattr(enhancer, "load", load)
    monkeypatch.setattr(selection, "choose", lambda workdir, rule: selection.Chosen(
        workdir, 12, "train", rule))
    flags = [*write_pairs(tmp_path / "eval15"), "--limit", "2", "--seed", "5"]
    (tmp_path / "run").mkdir()
    assert main(["evaluate.py", "--workdir", "run", *flags]) == 0
    saved = json.loads((tmp_path / "run" / "eval_eval15" / "results.json").read_text())
    assert saved["models"] == {"run": "run"} and saved["seed"] == 5 and saved["pictures"] == 2
    expected = evaluate({"run": brighten}, make_pairs(2)).means("run")
    assert saved["systems"]["run"]["psnr"]["mean"] == pytest.approx(expected["psnr"], rel=1e-12)
    assert main(["evaluate.py", "--workdir", "run", "--weights", "w/b.safetensors", *flags,
                 "--out", "elsewhere"]) == 0
    saved = json.loads((tmp_path / "elsewhere" / "results.json").read_text())
    assert list(saved["systems"])[:2] == ["run", "b"]
    assert opened == [("run", 5, 12), ("run", 5, 12), ("w/b.safetensors", 5, None)]
    assert saved["checkpoints"] == {"run": {"step": 12, "phase": "train", "select": "last"}}
    assert "contact_sheet.png to elsewhere" in capsys.readouterr().out


def test_the_command_takes_the_data_of_the_training(tmp_path, monkeypatch):
    from lljax.evaluation import evaluate as module
    low, high = write_pairs(tmp_path / "mine")[1::2]
    runs = [tmp_path / "run1", tmp_path / "run2"]
    for run in runs:
        run.mkdir()
        (run / "config.json").write_text(json.dumps(
            {"eval": {"source": "pairs", "low": low, "high": high}}))
    flags = [part for run in runs for part in ("--workdir", str(run))]
    assert module._data(module._parse(flags))[:3] == ("pairs", low, high)
    (runs[1] / "config.json").write_text(json.dumps(
        {"eval": {"source": "demo", "low": None, "high": None}}))
    with pytest.raises(InputError, match="different data"):
        module._data(module._parse(flags))
    assert module._data(module._parse([*flags, "--source", "demo"]))[:3] == ("demo", None, None)
    for number, run in enumerate(runs):  # where a published set is, is said once for all runs
        (run / "config.json").write_text(json.dumps({
            "eval": {"source": "lol_v1", "low": None, "high": None},
            "data": {"root": "there", "prepared": str(number)}}))
    assert module._data(module._parse(flags[:2])) == ("lol_v1", None, None, "there", "0")
    assert module._data(module._parse([*flags[:2], "--root", "here"]))[3:] == ("here", "0")
    with pytest.raises(InputError, match="different data"):
        module._data(module._parse(flags))
    (runs[1] / "config.json").write_text("{}")
    with pytest.raises(InputError, match="not a config"):
        module._data(module._parse(flags))


def without_references(pairs):
    return [{"name": pair["name"], "low": pair["low"]} for pair in pairs]


def test_pictures_without_references(tmp_path):
    pairs = without_references(make_pairs(3))
    cards = metrics.choose(references=False)[0]
    results = evaluate({"x4": brighten}, pairs, metrics=cards, out=str(tmp_path), with_report=True)
    assert [card.key for card in results.metrics] == ["loe", "cast", "noise"]
    assert results.of("identity", "loe").tolist() == [0, 0, 0]
    assert results.of("x4", "noise")[0] == cards[2].function(
        brighten(pairs[0]["low"]), None, pairs[0]["low"])
    text = table(results)
    assert "angle-to-grey" in text and "after scaling" not in text
    page = (tmp_path / "report.html").read_text()
    assert "angle-to-grey" in page and not list((tmp_path / "pictures").glob("reference"))
    assert (tmp_path / "contact_sheet.png").exists()


def test_a_missing_reference_is_named_where_one_is_needed():
    pairs = make_pairs(3)
    pairs[1] = without_references(pairs)[1]
    with pytest.raises(InputError, match=r"1 of 3.*001\.png: it has no reference"):
        evaluate({"x4": brighten}, pairs)
    loe = metrics.choose(["loe"])[0]
    assert evaluate({"x4": brighten}, pairs, metrics=loe).values.shape == (7, 3, 1)
    with pytest.raises(InputError, match="at least one metric"):
        evaluate({"x4": brighten}, pairs, metrics=[])


def test_baselines_can_be_chosen():
    pairs = make_pairs(1)
    assert evaluate({"x4": brighten}, pairs, baselines=["HE", "identity"]).systems == [
        "x4", "HE", "identity"]
    with pytest.raises(InputError, match='unknown baseline "CLAEH". Did you mean "CLAHE"'):
        evaluate({"x4": brighten}, pairs, baselines=["CLAEH"])


def test_the_nearer_to_1_is_the_better():
    pairs = make_pairs(12)
    near, dim, bright = (lambda p, f=f: np.clip(p * f, 0, 255).astype(np.uint8)
                         for f in (5.0, 2.5, 20.0))
    results = evaluate({"near": near, "dim": dim, "bright": bright}, pairs, baselines=False,
                       metrics=metrics.choose(["brightness"])[0])
    means = [results.means(name)["brightness"] for name in ("dim", "near", "bright")]
    assert means[0] < 0.6 and 0.8 < means[1] < 1.2 and means[2] > 1.4
    assert [results.is_best(name, "brightness") for name in results.systems] == [
        True, False, False]
    for name in ("dim", "bright"):
        assert results.difference(name, "near")["brightness"].losses >= 11
    assert "Brightness ratio (1 is best)" in table(results)


def test_the_command_without_references(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    low = write_pairs(tmp_path / "night")[1]
    flags = ["evaluate.py", "--source", "folder", "--low", low, "--baselines", "identity"]
    assert main([*flags, "--metrics", "all"]) == 0
    assert "niqe is not computed: it needs files" in capsys.readouterr().out
    saved = json.loads((tmp_path / "eval_low" / "results.json").read_text())
    assert list(saved["systems"]) == ["identity"] and saved["source"] == low
    assert set(saved["systems"]["identity"]) == {"loe", "cast", "noise"}
    assert set(saved["not_computed"]) >= {"psnr", "niqe"} and saved["protocol"] == "lljax"
    with pytest.raises(InputError, match="metric psnr: it compares with references"):
        main([*flags, "--metrics", "loe,psnr"])
    with pytest.raises(InputError, match="--high is given, but the data source folder does not"):
        main([*flags, "--high", low])


def test_the_command_computes_by_a_protocol(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    flags = write_pairs(tmp_path / "eval15")
    assert main(["evaluate.py", *flags, "--protocol", "llflow", "--metrics", "ssim,psnr_gtm",
                 "--baselines", "none", "--weights", "zerodce", "--limit", "1"]) == 0
    shown = capsys.readouterr().out
    assert "ssim[grey,u7x1,sample,valid,u8]" in shown and "gtmeanrgb-bgr,trunc" in shown
    saved = json.loads((tmp_path / "eval_eval15" / "results.json").read_text())
    assert saved["protocol"] == "llflow" and list(saved["metrics"]) == ["ssim", "psnr_gtm"]
