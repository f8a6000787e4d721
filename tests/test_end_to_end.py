"""The real configs, shrunk, by the commands a user types: train, evaluate, enhance."""

import json
import os
import pathlib
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
from PIL import Image

import lljax
from lljax import checkpoint
from lljax.data import demo
from lljax.evaluation.baselines import BASELINES

ROOT = pathlib.Path(__file__).parent.parent


# Adam makes whole steps of gradients of rounding size, which differ with the order of sums. With
# this epsilon it does not, and what is left is whether the devices compute the same.
EPSILON = {"lightendiffusion": [f"--config.phase.{net}.optim.{net}.eps=1e-3"
                                for net in ("autoencoder", "denoiser")],
           "enlightengan": [f"--config.phase.train.optim.{net}.eps=1e-3"
                            for net in ("generator", "global_disc", "local_disc")]}


def environment(devices=1):
    """Compiled as for a user: without conftest's flags of XLA."""
    return {**os.environ, "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}"}


def run(*command, devices=1, code=0):
    done = subprocess.run([sys.executable, *command], cwd=ROOT, env=environment(devices), text=True,
                          capture_output=True, timeout=300)
    assert done.returncode == code, done.stdout + done.stderr
    return done


def networks(workdir):
    _, nets = checkpoint.load_nets(str(workdir))
    return [np.asarray(leaf) for leaf in jax.tree.leaves(nets)]


@pytest.fixture(scope="module", params=["zerodce", "retinexnet", "enlightengan",
                                        "lightendiffusion"])
def trained(request, tmp_path_factory):
    """A smoke training of each method, evaluated, and its config with changes."""
    workdir = tmp_path_factory.mktemp("trained") / request.param
    config = [f"configs/{request.param}.py:smoke", *EPSILON.get(request.param, [])]
    run("train.py", "--config", *config, "--workdir", str(workdir), "--config.eval.every=2")
    said = run("evaluate.py", "--workdir", str(workdir), "--limit", "2").stdout
    assert str(workdir / "eval_demo_test") in said
    return workdir, config


def test_evaluate_from_the_workdir_alone(trained):
    workdir, _ = trained
    folder = workdir / "eval_demo_test"
    results = json.loads((folder / "results.json").read_text())
    assert list(results["systems"]) == [workdir.name, *BASELINES]
    assert results["systems"][workdir.name]["psnr"]["n"] == 2
    with Image.open(folder / "contact_sheet.png") as sheet:
        assert sheet.width > 900 and sheet.height > 400
    # The periodic evaluation of the training measured the same pixels.
    rows = [json.loads(text) for text in (workdir / "metrics.jsonl").open()]
    last = [row for row in rows if "eval/psnr" in row][-1]
    assert last["eval/psnr"] == pytest.approx(
        results["systems"][workdir.name]["psnr"]["mean"], rel=1e-9)


def test_enhance_and_explain_from_the_workdir(trained, tmp_path):
    workdir, _ = trained
    demo.write(tmp_path / "pictures", "test")
    picture = sorted((tmp_path / "pictures" / "low").iterdir())[0]
    done = run("-m", "lljax.cli", "enhance", str(picture), "-o", str(tmp_path / "out"),
               "--model", str(workdir))
    assert "1 enhanced, 0 failed" in done.stdout
    low = np.asarray(Image.open(picture))
    enhancer = lljax.load(workdir)
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "out" / picture.name)),
                                  enhancer(low))
    maps = enhancer.explain(low)
    assert maps["enhanced"].shape == low.shape and maps["enhanced"].dtype == np.float32
    assert len(maps) > 1


def test_eight_devices_equal_one(trained, tmp_path):
    workdir, config = trained
    run("train.py", "--config", *config, "--workdir", str(tmp_path / "eight"), devices=8)
    phases = json.loads((workdir / "config.json").read_text())["phase"].values()
    rate = max(net["lr"] for phase in phases for net in phase["optim"].values())
    for one, eight in zip(networks(workdir), networks(tmp_path / "eight"), strict=True):
        np.testing.assert_allclose(one, eight, rtol=0, atol=0.01 * rate)


def test_killed_in_the_second_phase_and_resumed_equals_uninterrupted(trained, tmp_path):
    workdir, config = trained
    phases = json.loads((workdir / "config.json").read_text())["phases"]
    if len(phases) < 2:
        pytest.skip("one phase only")
    own = tmp_path / "killed"
    command = [sys.executable, "train.py", "--config", *config, "--workdir", str(own)]
    process = subprocess.Popen(command, cwd=ROOT, env=environment(), stdout=subprocess.PIPE,
                               stderr=subprocess.STDOUT)
    deadline = time.time() + 200
    while not (own / "checkpoints" / "3").exists():  # two steps of the first phase, one of the next
        assert time.time() < deadline and process.poll() is None
        time.sleep(0.005)
    process.kill()
    process.communicate()
    out = run(*command[1:]).stdout
    assert f"resumed at step 3 ({phases[1]} 1/2)" in out
    for one, two in zip(networks(workdir), networks(own), strict=True):
        np.testing.assert_array_equal(one, two)


def test_pack_makes_a_weights_file_that_needs_nothing_of_training(trained, tmp_path):
    workdir, _ = trained
    out = tmp_path / "mine.safetensors"
    pack = ["-m", "lljax.cli", "pack", str(workdir), "-o", str(out)]
    assert "licence" in run(*pack, code=2).stderr and not out.exists()
    run(*pack, "--card", "licence=CC0", "--results",
        str(workdir / "eval_demo_test" / "results.json"))
    card = json.loads((tmp_path / "mine.json").read_text())
    assert card["licence"] == "CC0" and card["scores"]["psnr"]["n"] == 2 and card["sha256"]
    low = demo.records("test")[0]["low"]
    np.testing.assert_array_equal(lljax.load(out)(low), lljax.load(workdir)(low))
    assert "exists already" in run(*pack, "--card", "licence=CC0", code=2).stderr

    Image.fromarray(low).save(tmp_path / "low.png")
    code = ("import sys; from lljax import cli; cli.main(['lljax', 'enhance', "
            f"{str(tmp_path / 'low.png')!r}, '-o', {str(tmp_path / 'out')!r}, '--model', "
            f"{str(out)!r}]); print(sorted({{'tensorflow', 'tensorflow_datasets', 'orbax', 'grain',"
            " 'clu', 'torch'} & {name.split('.')[0] for name in sys.modules}))")
    lines = run("-c", code).stdout.splitlines()
    assert "1 enhanced" in lines[0] and lines[1] == "[]"
