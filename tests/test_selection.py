"""Which checkpoint is scored: the newest, or the validation's best on pictures it never saw."""

import json

import jax
import numpy as np
import pytest
from PIL import Image

from lljax import checkpoint
from lljax import config as config_lib
from lljax import method as method_lib
from lljax.errors import InputError
from lljax.evaluation import evaluate, selection
from lljax.inference import enhancer
from tests.test_evaluate import make_pairs, write_pairs

STEPS = {2: 0.5, 4: 0.7, 6: 0.6}  # step -> validation SSIM


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Validation pictures, and others: flags for each."""
    root = tmp_path_factory.mktemp("pictures")
    for role in ("low", "high"):
        (root / "test" / role).mkdir(parents=True)
        for pair in others():
            Image.fromarray(pair[role]).save(root / "test" / role / pair["name"])
    return {"val": write_pairs(root / "val"),
            "test": ["--low", str(root / "test" / "low"), "--high", str(root / "test" / "high")]}


def others():
    """Pairs that are none of `make_pairs`'s."""
    return [{"name": pair["name"], "low": pair["low"][::-1], "high": pair["high"][::-1]}
            for pair in make_pairs(4)]


def save(workdir, steps, **changes):
    """A training with those checkpoints: step -> SSIM of the validation, None without one."""
    config = config_lib.default("zerodce", "smoke")
    with config.unlocked():
        config.model.depth, config.model.width = 3, 4
        config.eval.every, config.eval.limit = 2, 0
        config.update_from_flattened_dict(changes)
    method = method_lib.load(config)
    nets = method.init(jax.random.key(0), {"low": np.zeros((1, 8, 8, 3), np.float32)})
    with checkpoint.Checkpoints(str(workdir), 9, config.checkpoint.best) as saved:
        for step, ssim in steps.items():
            # each step brightens by another amount
            changed = jax.tree.map(lambda x, step=step: np.asarray(x) - 0.05 * step, nets)
            state = method_lib.State(np.int32(step), np.int32(step), changed, {}, {})
            metrics = None if ssim is None else {"ssim": ssim, "mae": 100 * ssim, "psnr": 10.0}
            saved.save(state, config, "train", metrics)
    (workdir / "config.json").write_text(config_lib.to_json(config))
    return str(workdir)


@pytest.fixture(scope="module")
def run(tmp_path_factory, folders):
    low, high = folders["val"][1::2]
    return save(tmp_path_factory.mktemp("runs") / "run", {**STEPS, 7: None}, **{
        "eval.source": "pairs", "eval.low": low, "eval.high": high})


def test_the_rules(run, tmp_path):
    last, val = selection.choose(run, "last"), selection.choose(run, "val")
    assert (last.step, last.rule, last.score) == (7, "last", None)
    assert (val.step, val.phase, val.by, val.score) == (4, "train", "ssim", 0.7)
    # a metric that is better when it is lower; of equal ones the newest
    down = save(tmp_path / "down", {2: 0.4, 4: 0.4, 6: 0.9}, **{"checkpoint.best": "mae"})
    assert selection.choose(down, "val").step == 4
    assert selection.choose(down, "val").facts() == {
        "step": 4, "phase": "train", "select": "val", "by": "mae", "score": 40.0,
        "validated_on": "demo"}
    unscored = save(tmp_path / "unscored", {2: None})
    with pytest.raises(InputError, match="no checkpoint of .* has a validation score"):
        selection.choose(unscored, "val")
    with pytest.raises(InputError, match="not the workdir of a training"):
        selection.choose(str(tmp_path), "last")
    # a resumed training that was validated on other pictures from then on
    changed = save(tmp_path / "changed", {2: 0.5})
    save(tmp_path / "changed", {4: 0.7}, **{"eval.limit": 1})
    with pytest.raises(InputError, match="steps 2 and 4 of .* different pictures"):
        selection.choose(changed, "val")


def test_pictures_that_chose_are_refused_whatever_they_are_called(run, folders, tmp_path):
    chosen = [selection.choose(run, "val")]
    pairs = make_pairs(3)
    other = [{**pair, "low": pair["low"] + 1, "high": pair["high"] - 1} for pair in pairs]
    assert selection.separate(chosen, other) == {run: "none"}
    mixed = [other[0], {**pairs[2], "name": "renamed.png"}]
    with pytest.raises(InputError, match=r"1 of the 2 pictures chose step 4 of .*renamed\.png"):
        selection.separate(chosen, mixed)
    assert selection.separate(chosen, mixed, limit=1) == {run: "none"}
    # another exposure of a scene that chose: the reference is the same
    with pytest.raises(InputError, match="3 of the 3 pictures"):
        selection.separate(chosen, [{**pair, "low": pair["low"] + 1} for pair in pairs])
    assert selection.separate([selection.choose(run, "last")], pairs) == {}
    # only the pictures that were looked at count
    few = save(tmp_path / "few", {2: 0.5}, **{
        "eval.source": "pairs", "eval.low": folders["val"][1], "eval.high": folders["val"][3],
        "eval.limit": 1})
    assert selection.separate([selection.choose(few, "val")], pairs[1:]) == {few: "none"}
    gone = save(tmp_path / "gone", {2: 0.5}, **{
        "eval.source": "pairs", "eval.low": "gone/low", "eval.high": "gone/high"})
    found = selection.separate([selection.choose(gone, "val")], pairs)
    assert found[gone].startswith("not known") and "gone/low" in found[gone]


def test_the_command_scores_the_chosen_step_and_says_which(run, folders, tmp_path, capsys):
    flags = ["evaluate.py", "--workdir", run, *folders["test"], "--out", str(tmp_path / "out")]
    means = {}
    for rule, step in (("last", 7), ("val", 4)):
        assert evaluate.main([*flags, "--select", rule]) == 0
        saved = json.loads((tmp_path / "out" / "results.json").read_text())
        said = saved["checkpoints"]["run"]
        assert (said["step"], said["select"]) == (step, rule)
        means[rule] = saved["systems"]["run"]["psnr"]["mean"]
        system = enhancer.load(run, step=step)
        expected = evaluate.evaluate({"run": system}, others())
        assert means[rule] == pytest.approx(expected.means("run")["psnr"], rel=1e-12)
    assert means["last"] != means["val"]
    assert said["by"] == "ssim" and said["score"] == 0.7 and said["shared_pictures"] == "none"
    assert folders["val"][1] in said["validated_on"]
    # without flags, a workdir is scored on its validation's pictures: not what they chose
    with pytest.raises(InputError, match="3 of the 3 pictures chose step 4") as caught:
        evaluate.main(["evaluate.py", "--workdir", run, "--select", "val"])
    assert "\n" not in str(caught.value)
