"""The loop, run as a user runs it: resume, devices, processes, signals, bad flags."""

import json
import os
import pathlib
import re
import shutil
import signal
import socket
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
from PIL import Image

from lljax import checkpoint
from lljax.configs import zerodce
from lljax.errors import InputError, Stopped
from lljax.training.loop import fit
from tests import toy

ROOT = pathlib.Path(__file__).parent.parent
STEPS = 3  # of each of the toy's phases


def command(workdir, *flags, config="tests/toy.py"):
    return [sys.executable, "train.py", "--config", config, "--workdir", str(workdir), *flags]


def launch(workdir, *flags, devices=1, **kwargs):
    env = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1",
           "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}"}
    return subprocess.Popen(command(workdir, *flags, **kwargs), cwd=ROOT, env=env, text=True,
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def train(workdir, *flags, code=0, **kwargs):
    process = launch(workdir, *flags, **kwargs)
    out, err = process.communicate(timeout=300)
    assert process.returncode == code, out + err
    return out, err


def final(workdir):
    """The newest checkpoint's state as flat arrays."""
    with checkpoint.Checkpoints(str(workdir), read_only=True) as saved:
        raw = saved.raw(saved.latest())
    return {jax.tree_util.keystr(path): np.asarray(leaf)
            for path, leaf in jax.tree_util.tree_leaves_with_path(raw)}


def assert_same(a, b, atol=0.0):
    assert a.keys() == b.keys()
    for name in a:
        np.testing.assert_allclose(a[name], b[name], rtol=0, atol=atol, err_msg=name)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """An uninterrupted run of the toy, in this process."""
    workdir = tmp_path_factory.mktemp("runs") / "whole"
    fit(toy.get_config(), str(workdir))
    return workdir


def wait_for(path, process):
    deadline = time.time() + 240
    while not path.exists():
        assert time.time() < deadline, f"{path} did not appear"
        assert process.poll() is None, process.communicate()
        time.sleep(0.005)


def test_killed_at_the_phase_boundary_and_resumed_equals_uninterrupted(whole, tmp_path):
    process = launch(tmp_path / "killed")
    wait_for(tmp_path / "killed" / "checkpoints" / str(STEPS), process)
    process.kill()
    process.communicate()
    with checkpoint.Checkpoints(str(tmp_path / "killed"), read_only=True) as saved:
        meta = saved.meta(saved.latest())
        assert (meta["phase"], meta["phase_step"]) == ("first", STEPS)
    out, _ = train(tmp_path / "killed")
    assert f"resumed at step {STEPS} (first {STEPS}/{STEPS})" in out
    assert_same(final(whole), final(tmp_path / "killed"))
    rows = [json.loads(text) for text in (tmp_path / "killed/metrics.jsonl").open()]
    assert [row["step"] for row in rows] == list(range(1, 2 * STEPS + 1))


def test_sigterm_saves_and_exits_75_and_the_same_command_goes_on(whole, tmp_path):
    flags = ["--config.phase.second.steps=2000", "--config.checkpoint.every=100000"]
    process = launch(tmp_path / "run", *flags)
    metrics = tmp_path / "run" / "metrics.jsonl"
    wait_for(metrics, process)
    while len(metrics.read_text().splitlines()) < STEPS + 1:
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 75, out + err
    assert "saved at step" in err and "Traceback" not in err
    steps = int(err.split("saved at step ")[1].split(",")[0])
    assert final(tmp_path / "run")["['step']"] == steps
    # Went on and ended, it equals a run that was never interrupted.
    end = steps - STEPS + 2
    flags = [f"--config.phase.second.steps={end}"]
    out, _ = train(tmp_path / "run", *flags)
    assert f"changed since the checkpoint: phase.second.steps: 2000 -> {end}" in out
    config = toy.get_config("slow")
    config.phase.second.steps = end
    config.log.every = 100
    fit(config, str(tmp_path / "straight"))
    assert_same(final(tmp_path / "straight"), final(tmp_path / "run"))


def test_eight_devices_equal_one(whole, tmp_path):
    train(tmp_path / "eight", devices=8)
    assert_same(final(whole), final(tmp_path / "eight"), atol=1e-6)


def test_two_processes_equal_one(whole, tmp_path):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    processes = [launch(tmp_path / "two", f"--coordinator=localhost:{port}", "--process_count=2",
                        f"--process_id={number}", devices=2) for number in range(2)]
    outputs = [process.communicate(timeout=300) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
    assert_same(final(whole), final(tmp_path / "two"), atol=1e-6)
    assert "network base" in outputs[0][0] and "network base" not in outputs[1][0]


def test_several_steps_a_call_equal_one(whole, tmp_path):
    config = toy.get_config()
    config.steps_per_call = 3
    fit(config, str(tmp_path / "three"))
    assert_same(final(whole), final(tmp_path / "three"), atol=1e-6)


def test_finished_returns_at_once(whole, capsys):
    before = (whole / "metrics.jsonl").read_text()
    fit(toy.get_config(), str(whole))
    assert "finished: 6 steps" in capsys.readouterr().out
    assert (whole / "metrics.jsonl").read_text() == before


def test_what_the_workdir_holds(whole):
    assert json.loads((whole / "config.json").read_text())["method"] == "tests.toy"
    assert "jax " in (whole / "versions.txt").read_text()
    assert "base" in (whole / "parameters.txt").read_text()
    assert (whole / "command.txt").read_text().strip()
    assert list(whole.glob("events.out.tfevents.*"))
    rows = [json.loads(text) for text in (whole / "metrics.jsonl").open()]
    assert {"loss/l1", "total/base", "grad_norm/base", "lr/base"} <= rows[0].keys()
    assert {"loss/match", "loss/score", "lr/critic"} <= rows[-1].keys()
    with Image.open(whole / "samples" / "step_000006.png") as sheet:
        assert sheet.width > 900  # low | enhanced | reference


def test_losses_that_are_not_finite_stop_with_step_term_and_files(tmp_path):
    config = toy.get_config()
    config.phase.first.optim.base.lr = 1e30
    config.phase.first.steps = 20
    with pytest.raises(Stopped) as stopped:
        fit(config, str(tmp_path / "nan"))
    assert stopped.value.code == 1
    assert re.match(r"loss/l1 is (nan|inf) at step \d+; its batch: "
                    r"(\w+_(evening|lamp|candle|night)(, |\. )){8}", str(stopped.value))
    assert all(np.isfinite(value).all() for value in final(tmp_path / "nan").values())


def test_a_network_can_come_from_another_run(whole, tmp_path):
    config = toy.get_config()
    config.init.base = str(whole)
    config.phases = ("second",)
    config.loss.l1.enabled = False
    fit(config, str(tmp_path / "borrowed"))
    mine, theirs = final(tmp_path / "borrowed"), final(whole)
    names = [name for name in theirs if name.startswith("['nets']['base']")]
    assert names
    for name in names:
        np.testing.assert_array_equal(mine[name], theirs[name])


def test_a_new_run_continues_another_runs_checkpoint(whole, tmp_path):
    config = toy.get_config()
    config.resume = str(whole)
    config.phase.second.steps = STEPS + 1
    fit(config, str(tmp_path / "longer"))
    assert int(final(tmp_path / "longer")["['step']"]) == 2 * STEPS + 1


@pytest.mark.parametrize("changes, message", [
    ({"phase.first.steps": 4}, "config.phase.first.steps is 4"),
    ({"phase.second.steps": 2}, "already at step 3"),
    ({"phases": ("first",)}, "lacks"),
])
def test_a_checkpoint_that_does_not_fit_the_phases_is_one_line(whole, changes, message):
    config = toy.get_config()
    config.update_from_flattened_dict(changes)
    with pytest.raises(InputError, match=message):
        fit(config, str(whole))


@pytest.mark.parametrize("changes, message", [
    ({"phase.first.batch_size": 0}, "multiple"),
    ({"loss.extra.enabled": True}, "extra"),
    ({"loss.match.enabled": False}, "match"),
    ({"phases": ("frist",)}, 'Did you mean "first"'),
    ({"data.source": "folder"}, "--config.data.low"),
    ({"data.source": "pears"}, 'Did you mean "pairs"'),
    ({"data.resize": 0, "data.crop": 0, "data.augment": "none"}, "differ in size"),
    ({"data.resize": 0, "data.crop": 4096}, "smaller than config.data.crop"),
    ({"data.augment": "flipp"}, 'Did you mean "flip"'),
    ({"init.base": "nowhere"}, "nowhere"),
    ({"resume": "nowhere"}, "nowhere"),
    ({"steps_per_call": 2}, "steps_per_call"),
    ({"steps_per_call": 0}, "1 or more"),
    ({"phase.second.steps": 0}, "1 or more"),
    ({"precision": "hihg"}, 'Did you mean "high"'),
    ({"data.resize": -5}, "config.data.resize is -5"),
    ({"seed": -1}, "config.seed"),
    ({"checkpoint.keep": 0}, "config.checkpoint.keep"),
    ({"checkpoint.best": "sim"}, 'Did you mean "ssim"'),
    ({"data.low": "nowhere"}, "config.data.low is given"),
    ({"eval.high": "nowhere"}, "config.eval.high is given"),
    ({"phase.first.optim.base.schedule": "linear"}, "decay_end"),
    ({"phase.first.optim.base.schedule": "steps"}, "milestones"),
])
def test_mistakes_in_the_config_are_one_line(tmp_path, changes, message):
    config = toy.get_config()
    config.update_from_flattened_dict(changes)
    with pytest.raises(InputError, match=message) as error:
        fit(config, str(tmp_path / "x"))
    assert "\n" not in str(error.value)
    assert not (tmp_path / "x" / "config.json").exists()


def test_a_mistaken_command_leaves_a_good_workdirs_record(whole, tmp_path):
    config = toy.get_config()
    config.phase.second.steps = STEPS + 1
    config.data.source, config.data.low = "folder", "nowhere"
    before = {path: path.read_bytes() for path in whole.iterdir() if path.is_file()}
    with pytest.raises(InputError, match="nowhere"):
        fit(config, str(whole))
    assert {path: path.read_bytes() for path in whole.iterdir() if path.is_file()} == before


def test_one_term_that_is_not_finite_is_the_one_named(tmp_path):
    config = zerodce.get_config("smoke")
    config.loss.exposure.level = float("nan")
    with pytest.raises(Stopped, match="loss/exposure is nan at step 1; its batch: "):
        fit(config, str(tmp_path / "nan"))


def test_a_workdir_that_is_a_file_is_one_line(tmp_path):
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(InputError, match="cannot write checkpoints"):
        fit(toy.get_config(), str(tmp_path / "file"))


@pytest.mark.parametrize("damage", ["meta", "state"])
def test_a_damaged_checkpoint_is_one_line(whole, tmp_path, damage):
    shutil.copytree(whole, tmp_path / "run")
    (newest,) = (tmp_path / "run" / "checkpoints").iterdir()
    if damage == "meta":
        shutil.rmtree(newest / "meta")
    else:
        files = [path for path in (newest / "state").rglob("*") if path.is_file()]
        for path in files:
            path.write_bytes(path.read_bytes()[:len(path.read_bytes()) // 2])
    with pytest.raises(InputError, match="damaged") as error:
        fit(toy.get_config(), str(tmp_path / "run"))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("source", ["folder", "unpaired"])
def test_trains_on_folders_without_pairs(tmp_path, source):
    rng = np.random.default_rng(0)
    for role, count in (("low", 3), ("high", 5)):
        (tmp_path / role).mkdir()
        for number in range(count):
            picture = Image.fromarray(rng.integers(0, 256, (70, 80, 3), dtype=np.uint8))
            picture.save(tmp_path / role / f"{role}{number}.png")
    config = zerodce.get_config("smoke")
    config.data.source, config.data.low = source, str(tmp_path / "low")
    if source == "unpaired":
        config.data.high = str(tmp_path / "high")
    config.phase.train.steps = 1
    fit(config, str(tmp_path / "run"))
    assert int(final(tmp_path / "run")["['step']"]) == 1


@pytest.mark.parametrize("flags, message", [
    (["--config.loss.mach.weight=1"], '"match"'),
    (["--config.loss.match.wieght=1"], "key 'wieght'. Did you mean \"weight\""),
    (["--config.phase.first.steps=many"], "many"),
    (["--workdri=x"], "workdir"),
    (["--config=tests/toy.py:slwo"], '"slow"'),
    (["--config=tests/tyo.py"], "tests/tyo.py"),
    (["extra"], "extra"),
])
def test_mistakes_on_the_command_line_are_one_line_and_exit_2(tmp_path, flags, message):
    _, err = train(tmp_path / "x", *flags, code=2)
    assert message in err and err.count("\n") == 1 and "Traceback" not in err
    assert not (tmp_path / "x").exists()


def test_broken_files_are_named_and_counted_and_the_rest_is_used(tmp_path, capsys):
    rng = np.random.default_rng(0)
    for role in ("low", "high"):
        (tmp_path / role).mkdir()
        for number in range(4):
            picture = Image.fromarray(rng.integers(0, 256, (20, 20, 3), dtype=np.uint8))
            picture.save(tmp_path / role / f"{number}.png")
    broken = tmp_path / "low" / "2.png"
    broken.write_bytes(broken.read_bytes()[:200])
    config = toy.get_config()
    config.data.source = "pairs"
    config.data.low, config.data.high = str(tmp_path / "low"), str(tmp_path / "high")
    fit(config, str(tmp_path / "run"))
    out = capsys.readouterr().out
    assert out.count("skipped (1 so far)") == 1 and str(broken) in out
    rows = [json.loads(text) for text in (tmp_path / "run/metrics.jsonl").open()]
    assert rows[-1]["skipped_records"] == 1


def test_averages_are_scored_where_asked_for(tmp_path, whole, capsys):
    from lljax.evaluation import evaluate
    config = zerodce.get_config("smoke")
    config.phase.train.optim.curve.ema = 0.9
    fit(config, str(tmp_path / "a"))
    state = final(tmp_path / "a")
    flags = ["--source", "demo", "--limit", "2"]

    def score(*more):
        assert evaluate.main(["evaluate.py", "--workdir", str(tmp_path / "a"), *flags, *more]) == 0
        folder = tmp_path / "a" / "eval_demo_test"
        found = json.loads((folder / "results.json").read_text())["systems"]
        return {name: row["psnr"]["mean"] for name, row in found.items() if name[0] == "a"}

    on, off, both = score(), score("--average", "off"), score("--average", "both")
    assert both == on | off and list(both) == ["a", "a without average"]
    assert on["a"] != off["a without average"]
    _, nets = checkpoint.load_nets(str(tmp_path / "a"), averaged=False)
    for path, leaf in jax.tree_util.tree_leaves_with_path({"nets": nets}):
        np.testing.assert_array_equal(leaf, state[jax.tree_util.keystr(path)])
    with pytest.raises(InputError, match="keeps no averages"):
        evaluate.main(["evaluate.py", "--workdir", str(whole), *flags, "--average", "off"])
