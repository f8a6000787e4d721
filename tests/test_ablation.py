"""`lljax ablate`: equal to the runs alone, one compilation, resumed, and the numbers by hand."""

import csv
import itertools
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from lljax import cli
from lljax import config as config_lib
from lljax import method as method_lib
from lljax.data import pipeline, sources
from lljax.errors import InputError, Stopped
from lljax.evaluation import evaluate
from lljax.evaluation.baselines import BASELINES
from lljax.evaluation.metrics import METRICS
from lljax.training import ablation, ablation_report, loop
from lljax.training.loop import fit
from lljax.training.shared import ALONE, Shared
from tests import toy
from tests.test_method import compilations
from tests.test_training import assert_same, final

ROOT = pathlib.Path(__file__).parent.parent
TOY = str(ROOT / "tests" / "toy.py")
VARY = ["--vary=loss.match.weight=0.5,2", "--vary=loss.score.weight=0.1,0"]


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pairs")
    rng = np.random.default_rng(0)
    for role, most in (("low", 60), ("high", 256)):
        (folder / role).mkdir()
        for number in range(3):
            pixels = rng.integers(0, most, (20, 24, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / role / f"{number}.png")
    return folder


def command(pairs, root, *flags, config=f"{TOY}:slow"):
    return ["lljax ablate", "--config", config, f"--low={pairs / 'low'}", "--root", str(root),
            f"--high={pairs / 'high'}", "--config.log.samples=0", *flags]


def planned(argv):
    flags = config_lib.parse(argv, **ablation._FLAGS)
    ablation._check_flags(flags)
    variants = ablation.plan(flags, argv)
    return variants, ablation.in_order([
        run for variant in variants for run in ablation.runs_of(variant, flags)])


def scoring(argv, shared):
    """What a command line asks to be computed, and on which pictures."""
    flags = config_lib.parse(ablation._one_value_each(argv), **ablation._FLAGS)
    wanted = ablation.scoring_of(flags, ablation._evaluated(flags.config, flags))
    return ablation.find_pictures(wanted, shared)


@pytest.fixture(scope="module")
def shared():
    """One for the file's trainings, so that they compile once."""
    with Shared() as one:
        yield one


@pytest.fixture(scope="module")
def grid(pairs, tmp_path_factory, shared):
    """A finished grid of two weights and two seeds, and how often it compiled after its first
    run."""
    root = tmp_path_factory.mktemp("grid")
    argv = command(pairs, root, *VARY, "--seeds=2")
    _, runs = planned(argv)
    compiled, wanted = compilations(), scoring(argv, shared)
    assert ablation.train(runs[:1], shared, wanted) == {}
    assert compiled
    compiled.clear()
    assert ablation.train(runs[1:], shared, wanted) == {}
    count = len(compiled)
    assert ablation.main(argv) == 0
    return root, runs, count


def rows(path):
    with open(path, encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_one_compilation_serves_every_weight_and_seed(grid):
    _, runs, count = grid
    assert [run.name for run in runs] == [
        f"{name}, seed {seed}" for name in (
            "baseline", "match=0.5, score=0", "match=2, score=0.1", "match=2, score=0")
        for seed in (0, 1)]
    assert count == 0


@pytest.mark.parametrize("place", [3, 4])
def test_a_variant_equals_the_run_alone_bit_for_bit(grid, tmp_path, place):
    _, runs, _ = grid
    run = runs[place]
    fit(run.config, str(tmp_path / "alone"))
    assert_same(final(tmp_path / "alone"), final(run.workdir))
    # and neither weight nor seed is without effect
    assert any((value != final(runs[0].workdir)[name]).any()
               for name, value in final(run.workdir).items())


def test_the_same_command_trains_nothing_again(grid, pairs, capsys):
    root, runs, _ = grid
    before = {path: path.read_bytes() for path in root.rglob("*") if path.is_file()}
    assert ablation.main(command(pairs, root, *VARY, "--seeds=2")) == 0
    assert "8 of 8 runs are finished" in capsys.readouterr().out
    assert {path: path.read_bytes() for path in root.rglob("*") if path.is_file()} == before


def test_the_table_is_what_the_pictures_say(grid):
    root, _, _ = grid
    values = {}
    for row in rows(root / "per_image.csv"):
        if "(untrained)" not in row["variant"]:
            values.setdefault(row["variant"], {}).setdefault(row["seed"], []).append(
                float(row["psnr"]))
    values = {name: np.array(list(seeds.values())) for name, seeds in values.items()}
    assert values["baseline"].shape == (2, 3)
    found = json.loads((root / "ablation.json").read_text())
    table = {row["variant"]: row for row in rows(root / "ablation.csv")}
    for name, value in values.items():
        cell = found["variants"][name]["scores"]["psnr"]
        assert cell["mean"] == pytest.approx(value.mean())
        assert cell["sd"] == pytest.approx(abs(value[0].mean() - value[1].mean()) / 2 ** 0.5)
        assert float(table[name]["psnr_mean"]) == cell["mean"]
        less = found["variants"][name]["minus_baseline"]
        if name == "baseline":
            assert less is None and table[name]["psnr_minus_baseline_mean"] == ""
            continue
        difference = value - values["baseline"]
        assert less["psnr"]["mean"] == pytest.approx(difference.mean())
        low, high = less["psnr"]["ci95"]
        assert difference.min() <= low <= difference.mean() <= high <= difference.max()
    runs = rows(root / "runs.csv")
    assert len(runs) == 8 and {"loss/match", "loss/score"} <= runs[0].keys()
    assert table["match=2, score=0"]["changes"] == "loss.match.weight=2 loss.score.weight=0"
    for name in ("ablation.md", "ablation.tex", "ablation.html"):
        text = (root / name).read_text()
        assert "match=2, score=0" in text and "2 seeds the intervals are too narrow" in text
    assert "http" not in (root / "ablation.html").read_text().replace(
        "http://www.w3.org/2000/svg", "")


def test_methods_without_training_are_rows_of_the_table(grid, pairs):
    root, _, _ = grid
    found = json.loads((root / "ablation.json").read_text())
    assert list(found["untrained"]) == list(BASELINES)  # evaluate.py's default
    assert not found["untrained"].keys() & found["variants"].keys()
    table = {row["variant"]: row for row in rows(root / "ablation.csv")}
    trained = [[float(row["psnr"]) for row in rows(root / "per_image.csv")
                if (row["variant"], row["seed"]) == ("baseline", seed)] for seed in "01"]
    source = sources.open("pairs", low=str(pairs / "low"), high=str(pairs / "high"))
    for name in ("identity", "HE"):
        values = [METRICS["psnr"].function(BASELINES[name](source[i]["low"]), source[i]["high"],
                                           source[i]["low"]) for i in range(3)]
        row, cells = table[f"{name} (untrained)"], found["untrained"][name]
        assert row["seeds"] == "0" and row["changes"] == ""
        assert float(row["psnr_mean"]) == pytest.approx(np.mean(values))
        assert cells["scores"]["psnr"]["mean"] == float(row["psnr_mean"])
        assert cells["scores"]["psnr"]["sd"] is None and cells["scores"]["psnr"]["ci95"]
        less = np.array(values) - np.array(trained)  # each of the baseline's seeds
        assert cells["minus_baseline"]["psnr"]["mean"] == pytest.approx(less.mean())
        assert cells["minus_baseline"]["psnr"]["sd"] == pytest.approx(less.mean(1).std(ddof=1))
        assert [float(row["psnr"]) for row in rows(root / "per_image.csv")
                if row["variant"] == f"{name} (untrained)"] == pytest.approx(values)
    for name in ("ablation.md", "ablation.tex", "ablation.html"):
        text = (root / name).read_text()
        assert text.count("LIME-style (untrained)") == 4  # scores and differences, both with gtm
        assert "need no training, so no seeds; the baseline is the config as given" in text
    assert "| HE (untrained) | none | " in (root / "ablation.md").read_text()
    assert "identity" not in (root / "plots" / "psnr_minus_baseline.svg").read_text()
    assert "identity" not in (root / "runs.csv").read_text()


def test_other_metrics_score_anew_and_train_nothing(grid, pairs, tmp_path, shared, capsys):
    root, _, _ = grid
    copy = tmp_path / "copy"
    shutil.copytree(root, copy)
    argv = command(pairs, copy, *VARY, "--seeds=2", "--metrics", "psnr_y,ssim,brightness",
                   "--protocol=llflow", "--baselines=CLAHE,identity")
    _, runs = planned(argv)
    before = final(runs[0].workdir)
    assert ablation.train(runs[:1], shared, scoring(argv, shared)) == {}
    assert_same(before, final(runs[0].workdir))
    assert "finished: 6 steps" in capsys.readouterr().out
    assert ablation.main([*argv, "--collect"]) == 0
    assert "baseline, seed 1: scored by other metrics" in capsys.readouterr().out
    found = json.loads((copy / "ablation.json").read_text())
    assert [card["key"] for card in found["metrics"]] == ["psnr_y", "ssim", "brightness"]
    assert found["metrics"][1]["protocol"] == "ssim[grey,u7x1,sample,valid,u8]"
    assert list(found["variants"]) == ["baseline"]
    assert list(found["untrained"]) == ["CLAHE", "identity"]
    flags = ["--low", str(pairs / "low"), "--high", str(pairs / "high"), "--protocol=llflow",
             "--metrics=psnr_y,ssim,brightness", "--baselines=CLAHE", "--out", str(tmp_path / "e"),
             "--workdir", runs[0].workdir]
    assert evaluate.main(["evaluate.py", *flags]) == 0
    systems = json.loads((tmp_path / "e" / "results.json").read_text())["systems"]
    for key in ("psnr_y", "ssim", "brightness"):
        assert found["variants"]["baseline"]["scores"][key]["mean"] == pytest.approx(
            systems["baseline_seed0"][key]["mean"])
        assert found["untrained"]["CLAHE"]["scores"][key]["mean"] == pytest.approx(
            systems["CLAHE"][key]["mean"])


def test_pictures_that_cannot_be_scored_are_named_before_anything_is_trained(pairs, tmp_path):
    shutil.copytree(pairs, tmp_path / "pairs")
    for role in ("low", "high"):
        Image.new("RGB", (8, 9)).save(tmp_path / "pairs" / role / "1.png")
    with pytest.raises(InputError, match=r"1 of 3 pairs cannot be scored.*1\.png.*SSIM"):
        ablation.main(command(tmp_path / "pairs", tmp_path / "x"))
    assert not (tmp_path / "x").exists()


def test_metrics_without_their_files_are_named_under_the_table(pairs, tmp_path):
    flags = config_lib.parse(command(pairs, tmp_path, "--metrics=all", "--baselines=none"),
                             **ablation._FLAGS)
    wanted = ablation.scoring_of(flags, flags.config)
    assert {"loe", "psnr_y"} < {card.key for card in wanted.cards}
    assert "--niqe FILE" in wanted.left_out["niqe"] and not wanted.baselines
    two = ablation._one_value_each(["lljax ablate", "--lpips-alex", "a", "b", "--limit", "1"])
    assert two == ["lljax ablate", "--lpips-alex=a", "--lpips-alex=b", "--limit", "1"]


def test_the_runs_of_an_ablation_are_one_group_of_weights_and_biases(grid, pairs, tmp_path):
    root, runs, _ = grid
    for run in runs:  # what each was trained, and logged, with
        saved = json.loads(pathlib.Path(run.workdir, "config.json").read_text())
        assert saved["log"]["group"] == root.name
    for flags, group in (([], "mine"), (["--config.log.group=ours"], "ours")):
        variants, _ = planned(command(pairs, tmp_path / "mine", "--vary=preset=slow", *flags,
                                      config=TOY))
        assert [variant.config.log.group for variant in variants] == [group] * 2


def test_pictures_and_plots_are_there(grid):
    root, _, _ = grid
    with Image.open(root / "pictures.png") as sheet:  # low, four variants, reference
        assert sheet.width == 6 * 246 + 6 and sheet.height > 3 * 200
    names = {path.name for path in (root / "plots").iterdir()}
    assert {"psnr_minus_baseline.svg", "ssim_against_loss.match.weight.svg"} <= names
    plot = (root / "plots" / "ssim_against_loss.match.weight.svg").read_text()
    assert plot.count("<polyline") == 2 and "loss.score.weight=0.1" in plot


def test_an_interrupted_ablation_goes_on(grid, pairs, tmp_path, shared):
    _, runs, _ = grid
    argv = command(pairs, tmp_path, *VARY, "--seeds=2")
    _, mine = planned(argv)
    shared.interrupted = True
    with pytest.raises(Stopped) as stopped:
        ablation.train(mine[2:3], shared, scoring(argv, shared))
    shared.interrupted = False
    assert stopped.value.code == 75 and final(mine[2].workdir)["['step']"] < 6
    assert ablation.train(mine[2:3], shared, scoring(argv, shared)) == {}
    assert_same(final(mine[2].workdir), final(runs[2].workdir))


@pytest.fixture
def lockstep(monkeypatch, capsys):
    """How runs were trained in lockstep. What fails there is trained one after the other, so that
    equal results alone say nothing."""
    done = []

    def fit_members(members, shared, how=ALONE):
        loop.fit_members(members, shared, how)
        if how != ALONE:
            done.append((how, len(members)))

    monkeypatch.setattr(ablation, "fit_members", fit_members)
    yield done
    assert "not in lockstep" not in capsys.readouterr().err


@pytest.mark.parametrize("how", ["unrolled", "vmap"])
def test_runs_in_lockstep_equal_the_runs_alone(grid, pairs, tmp_path, shared, lockstep, how):
    """To rounding: the compiler orders sums in another way where several runs are one program."""
    _, runs, _ = grid
    argv = command(pairs, tmp_path, *VARY, "--seeds=2")
    _, mine = planned(argv)
    assert ablation.train(mine[3:5], shared, scoring(argv, shared), how) == {}
    assert lockstep == [(how, 2)]
    for one, other in zip(runs[3:5], mine[3:5], strict=True):
        assert_same(final(one.workdir), final(other.workdir), atol=1e-5)
        terms = [[json.loads(line) for line in open(f"{run.workdir}/metrics.jsonl")]
                 for run in (one, other)]
        assert [row["step"] for row in terms[0]] == [row["step"] for row in terms[1]]
        assert terms[1][-1]["loss/match"] == pytest.approx(terms[0][-1]["loss/match"], rel=1e-4)


def test_variants_of_zerodce_equal_the_runs_alone(pairs, tmp_path, shared, lockstep):
    """A real method: bit for bit one after the other, to rounding in lockstep."""
    config = f"{ROOT / 'configs' / 'zerodce.py'}:smoke"
    alone = None
    for how, atol in ((ALONE, 0.0), ("unrolled", 1e-7), ("vmap", 1e-7)):
        argv = command(pairs, tmp_path / how, "--vary=loss.color.weight=0", "--seeds=1",
                       "--config.data.resize=32", config=config)
        _, (baseline, variant) = planned(argv)
        if alone is None:
            fit(variant.config, str(tmp_path / "alone"))
            alone = final(tmp_path / "alone")
        assert ablation.train([baseline, variant], shared, scoring(argv, shared), how) == {}
        assert_same(alone, final(variant.workdir), atol=atol)
        assert any((value != final(baseline.workdir)[name]).any() for name, value in alone.items())
    assert lockstep == [("unrolled", 2), ("vmap", 2)]


def test_a_run_that_fails_in_lockstep_does_not_lose_the_other(grid, pairs, tmp_path, shared,
                                                              lockstep):
    _, runs, _ = grid
    argv = command(pairs, tmp_path, "--vary=loss.l1.weight=1e38", "--seeds=1")
    (_, mine), wanted = planned(argv), scoring(argv, shared)
    failed = ablation.train(mine, shared, wanted, "unrolled")
    assert list(failed) == ["l1=1e38, seed 0"] and "at step 1;" in failed[mine[1].name]
    assert lockstep == [("unrolled", 2)]
    assert ablation.scores_of(mine[1], wanted) is None
    assert_same(final(runs[0].workdir), final(mine[0].workdir), atol=1e-5)


def test_runs_on_a_device_each_equal_the_runs_alone(grid, pairs, tmp_path):
    _, runs, _ = grid
    argv = command(pairs, tmp_path, *VARY, "--seeds=2", "--how=devices", "--share=1/4")
    env = {**os.environ, "PYTHONPATH": str(ROOT),
           "XLA_FLAGS": "--xla_force_host_platform_device_count=2"}
    done = subprocess.run([sys.executable, "-m", "lljax.cli", "ablate", *argv[1:]], env=env,
                          cwd=ROOT, text=True, capture_output=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "match=0.5, score=0, seed 0; match=0.5, score=0, seed 1" in done.stdout
    assert "not in lockstep" not in done.stderr
    for run in runs[2:4]:
        other = tmp_path / pathlib.Path(run.workdir).relative_to(runs[0].workdir.split("/runs/")[0])
        assert_same(final(run.workdir), final(other), atol=1e-5)


def test_every_way_is_measured_and_one_of_them_chosen(pairs, tmp_path, shared, monkeypatch, capsys):
    monkeypatch.setattr(ablation, "MEASURED", 1)
    argv = command(pairs, tmp_path, VARY[0], "--seeds=1")
    _, mine = planned(argv)
    assert ablation.train(mine, shared, scoring(argv, shared), "auto") == {}
    out = capsys.readouterr().out
    (line,) = [line for line in out.splitlines() if line.startswith("a step of 2 runs: ")]
    for how in (ALONE, "unrolled", "vmap"):
        assert re.search(rf"\b{how} [\d.e+]+ ms[,;]", line), line
    assert "devices not possible (2 runs on 1 devices)" in line
    assert line.split("chosen: ")[1] in (ALONE, "unrolled", "vmap")


@pytest.mark.parametrize("found, chosen", [
    ({"sequential": 0.4, "devices": 0.2, "unrolled": 0.3, "vmap": "no rule"}, "devices"),
    ({"sequential": 0.1, "devices": 0.2, "unrolled": 0.3, "vmap": 0.4}, ALONE),
    ({"sequential": 0.4, "devices": "1 device", "unrolled": 0.3, "vmap": 0.2}, "vmap"),
    ({"sequential": "no memory", "devices": "1 device"}, ALONE)])
def test_the_fastest_is_chosen(found, chosen, capsys):
    assert ablation._fastest(found, 4) == chosen
    said = capsys.readouterr().out
    assert said.startswith("a step of 4 runs: ") and said.endswith(f"chosen: {chosen}\n")
    for how, value in found.items():
        assert (f"{how} not possible ({value})" if isinstance(value, str) else
                f"{how} {1000 * value:g} ms") in said


@pytest.mark.parametrize("how, devices, sizes", [
    (ALONE, 2, [1] * 5), ("unrolled", 2, [5]), ("devices", 1, [1] * 5), ("devices", 2, [2, 2, 1]),
    ("devices", 3, [3, 2]), ("devices", 4, [3, 2]), ("devices", 8, [5])])
def test_runs_are_computed_in_rounds(how, devices, sizes, monkeypatch):
    monkeypatch.setattr(jax, "local_device_count", lambda: devices)
    parts = loop.rounds(list("abcde"), how)
    assert [len(part) for part in parts] == sizes and "".join(sum(parts, [])) == "abcde"


def test_four_runs_take_two_devices_in_rounds(pairs, tmp_path, shared, monkeypatch, capsys):
    """--how auto considers devices when they are fewer than the runs in lockstep."""
    trained = []

    class Training:
        def __init__(self, members, shared, how):
            self.members, self.how, self.seconds = members, how, 0

        def batches(self, phase, start, calls):
            return itertools.repeat(([None] * len(self.members), None))

        def run(self):
            trained.append((self.how, [member.name for member in self.members]))

    class Step:  # takes as long as it says on the test's clock
        def __init__(self, how, count):
            self.seconds = {ALONE: 4, "devices": 5, "unrolled": 12, "vmap": 13}[how]
            assert count == {ALONE: 1, "devices": 2}.get(how, 4)

        def __call__(self, states, batches, weights):
            clock[0] += self.seconds
            return states, np.zeros(1)

        def place(self, states):
            return states

        def weights(self, weights):
            return weights

    clock = [0.0]
    argv = command(pairs, tmp_path, VARY[0], "--seeds=2")
    _, mine = planned(argv)
    monkeypatch.setattr(ablation, "MEASURED", 1)
    monkeypatch.setattr(jax, "local_device_count", lambda: 2)
    monkeypatch.setattr(loop, "_Training", Training)
    monkeypatch.setattr(shared, "step", lambda config, method, phase, how, count: Step(how, count))
    monkeypatch.setattr(loop.time, "perf_counter", lambda: clock[0])
    (group,) = ablation._groups(mine, "auto", 4)
    assert ablation._in_lockstep(group, shared, "auto", {}) == {}
    assert "sequential 1.6e+04 ms, devices 1e+04 ms, unrolled 1.2e+04 ms, vmap 1.3e+04 ms" in (
        capsys.readouterr().out)
    names = [run.name for run in mine]
    assert trained == [("devices", names[:2]), ("devices", names[2:])]


def test_a_failed_variant_does_not_lose_the_others(pairs, tmp_path, capsys):
    argv = command(pairs, tmp_path, "--vary=loss.match.weight=1e38", "--mode=list", "--seeds=1",
                   "--vary=phase.second.batch_size=0", "--vary=loss.score.weight=0",
                   "--baselines=none")
    assert ablation.main(argv) == 1
    out, err = capsys.readouterr()
    assert "failed: match=1e38, seed 0: " in err and " at step" in err
    assert "phase.second.batch_size=0, seed 0: config.phase.second.batch_size is 0" in err
    names = [row["variant"] for row in rows(tmp_path / "ablation.csv")]
    assert names == ["baseline", "score=0"]
    assert "Not in the table: match=1e38, seed 0" in (tmp_path / "ablation.md").read_text()
    # another config under the same names is refused, and nothing of it is touched
    capsys.readouterr()
    assert ablation.main([*argv, "--config.phase.first.optim.base.lr=0.5"]) == 1
    assert "was trained with another config (phase.first.optim.base.lr: 0.01 -> 0.5)" in (
        capsys.readouterr().err)


@pytest.mark.parametrize("flags, message", [
    (["--vary=loss.mach.weight=0"], 'Did you mean "loss.match"'),
    (["--vary=loss.match.wieght=0"], 'Did you mean "loss.match.weight"'),
    (["--vary=loss.match.weight=much"], "'much' is not a number"),
    (["--vary=loss.match.weight"], "KEY=VALUE,VALUE"),
    (["--vary=loss.extra.weight=0,1"], "'extra' is not enabled"),
    (["--vary=loss.match.weight=0.5"], "nothing is varied"),
    (["--vary=seed=1,2"], "--seeds"),
    (["--vary=eval.source=demo,pairs"], "scored on the same pictures"),
    (["--vary=steps_per_call=1,much"], "'much' is not"),
    (["--vary=preset=slwo"], 'Did you mean "slow"'),
    ([VARY[0], VARY[0]], "given twice"),
    (["--mode=list"], "needs --vary"),
    (["--mode=gird"], 'Did you mean "grid"'),
    (["--mode=leave-one-out", VARY[0]], "leave out --vary"),
    (["--preset=loses"], 'Did you mean "losses"'),
    (["--preset=losses", VARY[0]], "leave out --vary"),
    (["--how=unroled"], 'Did you mean "unrolled"'),
    (["--seeds=0"], "--seeds is 0"),
    (["--share=3/3"], "I/N"),
    (["--launch=slrum"], 'Did you mean "slurm"'),
    (["--tasks=2"], "--tasks goes with --launch"),
    (["--together=2", "--how=sequential"], "--together goes with --how auto"),
    (["--source=folder"], "source of pairs"),
    (["--metrics=psrn"], 'Did you mean "psnr"'),
    (["--metrics=niqe"], "give --niqe FILE"),
    (["--protocol=lflow"], 'Did you mean "llflow"'),
    (["--baselines=HEE"], 'Did you mean "HE"'),
    (["--lpips-alex", "a.pth"], "--lpips-alex: expected 2 arguments"),
    (["--lpips-alex=a.pth"], "--lpips-alex: expected 2 arguments"),
    (["--metric=psnr"], "metrics"),
    (["--low=nowhere"], "nowhere"),
    (["--rot=x"], "rot"),
])
def test_a_mistake_is_one_line_before_anything_is_trained(pairs, tmp_path, flags, message):
    if flags == ["--source=folder"]:
        argv = ["lljax ablate", "--config", TOY, "--root", str(tmp_path / "x"), *flags]
    else:
        argv = command(pairs, tmp_path / "x", *flags)
    with pytest.raises(InputError, match=message) as error:
        ablation.main(argv)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "x").exists()


def test_leaving_out_takes_every_enabled_term(pairs, tmp_path):
    variants, runs = planned(command(pairs, tmp_path))
    assert {variant.name: variant.entries for variant in variants[1:]} == {
        f"without {term}": (f"loss.{term}.weight=0",) for term in ("l1", "match", "score")}
    assert len(runs) == 12 and variants[2].config.loss.match.enabled


@pytest.mark.parametrize("name", method_lib.list_methods())
def test_the_questions_that_are_ready(name, tmp_path):
    presets = ":vgg" if name == "enlightengan" else ""
    path = str(ROOT / "configs" / f"{name}.py")
    questions = {"losses", *__import__(f"lljax.configs.{name}", fromlist=["_"]).ABLATIONS}
    assert {"losses", "data"} < questions
    for question in questions:
        argv = ["lljax ablate", f"--config={path}{presets}", f"--root={tmp_path}",
                f"--preset={question}", "--config.seed=3"]
        flags = config_lib.parse(argv, **ablation._FLAGS)
        variants = ablation.plan(flags, argv)
        known = ablation._question(question, variants[0].config, path)
        assert [variant.name for variant in variants] == ["baseline", *known]
        assert len({variant.folder for variant in variants}) == len(variants)
        for variant in variants:
            assert variant.config.seed == 3
            if not presets:  # those need a file
                method_lib.load(variant.config)


def test_a_question_says_which_of_its_variants_are_left_out(tmp_path, capsys):
    argv = ["lljax ablate", f"--config={ROOT / 'configs' / 'enlightengan.py'}",
            f"--root={tmp_path}", "--preset=modules"]
    variants, _ = planned(argv)
    assert [variant.name for variant in variants] == [
        "baseline", "no local discriminator", "no attention"]
    assert capsys.readouterr().out == (
        "note: variant 'no feature loss' (no_feature) is left out: the config as given has "
        "nothing of what it changes\n")


def test_the_baselines_value_is_one_of_those_varied(pairs, tmp_path):
    """So that a setting of two values, one the baseline's, has its plot."""
    variants, _ = planned(command(pairs, tmp_path, VARY[0]))
    assert [variant.entries for variant in variants] == [
        ("loss.match.weight=0.5",), ("loss.match.weight=2",)]


def test_a_slurm_job_takes_its_shares(pairs, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    # a folder of a flag's name is no flag
    argv = ["lljax", "ablate", *command(pairs, "launch", *VARY, "--launch", "slurm",
                                        "--tasks=3")[1:], "--root", "launch"]
    assert cli.main(argv) == 0
    path = tmp_path / "launch" / "launch" / "ablation.sbatch"
    assert str(path) in capsys.readouterr().out
    assert subprocess.run(["bash", "-n", path]).returncode == 0
    text = path.read_text()
    assert "--array=0-2" in text and '--share="$SLURM_ARRAY_TASK_ID/3"' in text
    assert "--launch" not in text and "--tasks" not in text and VARY[0] in text
    assert "--root launch" in text and " slurm" not in text
    variants = list(range(7))
    shares = [ablation._share(variants, f"{number}/3") for number in range(3)]
    assert sorted(sum(shares, [])) == variants and max(map(len, shares)) == 3


def test_collecting_trains_nothing(pairs, tmp_path, capsys):
    assert ablation.main(command(pairs, tmp_path, *VARY, "--collect")) == 0
    assert "no finished run" in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


def test_the_interval_draws_seeds_and_pictures():
    # pictures alike: a quarter of the draws take the one seed twice, a quarter the other
    low, high = ablation_report.interval(np.array([[1.0] * 4, [3.0] * 4]))
    assert (low, high) == (1.0, 3.0)
    # one seed: the deviation of a mean over n pictures is sd / sqrt(n)
    values = np.random.default_rng(0).normal(5, 2, (1, 400))
    low, high = ablation_report.interval(values)
    assert (high - low) / 2 == pytest.approx(1.96 * values.std() / 20, rel=0.05)
    assert (low + high) / 2 == pytest.approx(values.mean(), abs=0.02)
    assert ablation_report.interval(np.ones((3, 1))) is None


def test_a_traced_seed_draws_the_same_keys():
    data = pipeline.Data(toy.get_config().data)
    batch, _ = next(data.batches(0, 0, 4))
    fixed = pipeline.on_device(batch, 7, jnp.int32(2))
    traced = jax.jit(pipeline.on_device)(batch, np.uint32(7), jnp.int32(2))
    for name in ("key", "step_key"):
        np.testing.assert_array_equal(jax.random.key_data(fixed[name]),
                                      jax.random.key_data(traced[name]))


@pytest.mark.parametrize("changes, wanted", [
    ({"share": 0.5}, [0, 2]), ({"share": 0.75}, [0, 1, 2]), ({"brightest": 0.3}, [0, 1]),
    ({"brightest": 0.3, "share": 0.5}, [0])])
def test_a_training_on_part_of_the_pictures(tmp_path, changes, wanted):
    for number, level in enumerate((10, 60, 110, 160)):
        Image.fromarray(np.full((16, 16, 3), level, np.uint8)).save(tmp_path / f"{number}.png")
    config = toy.get_config().data
    config.update({"source": "folder", "low": str(tmp_path), "augment": "none", **changes})
    data = pipeline.Data(config)
    batch, names = next(data.batches(0, 0, 2 * len(wanted)))
    assert len(data) == len(wanted)
    assert sorted(set(names)) == [f"{number}.png" for number in wanted]


def test_no_picture_left_is_one_line(tmp_path):
    Image.fromarray(np.full((16, 16, 3), 200, np.uint8)).save(tmp_path / "a.png")
    config = toy.get_config().data
    config.update({"source": "folder", "low": str(tmp_path), "brightest": 0.1})
    with pytest.raises(InputError, match="mean luma is 0.784"):
        pipeline.Data(config)
    config.update({"brightest": 1.0, "share": 0.0})
    with pytest.raises(InputError, match="config.data.share is 0"):
        pipeline.Data(config)
