"""What a phase needs of each picture: computed once where the pictures stay the same, and the same
training as where it is computed at every step."""

import socket

import jax
import numpy as np
import pytest

from lljax import weights
from lljax.configs import common
from lljax.data import pipeline
from lljax.training.loop import fit, fit_members
from lljax.training.member import Member
from lljax.training.shared import Shared
from tests import test_lightendiffusion, toy
from tests.test_training import assert_same, final, launch

RECORDS = 7  # a tenth of the built-in ones: three steps of eight draw all three times
FLAGS = {"data.augment": "none", "data.share": 0.1, "log.samples": 0}


class Watched(Shared):
    """Counts what is computed, a phase."""

    def __init__(self):
        super().__init__()
        self.made = []

    def features(self, config, method, phase, nets):
        self.made.append((phase, super().features(config, method, phase, nets)))
        return self.made[-1][1]

    def counts(self):
        """Pictures computed by every phase that has begun since the last call."""
        made, self.made = self.made, []
        return [(phase, each.computed) for phase, each in made]


def configured(**changes):
    config = toy.get_config("slow")
    config.update_from_flattened_dict({**FLAGS, **changes})
    return config


@pytest.fixture(scope="module")
def shared():
    with Watched() as one:
        yield one


@pytest.fixture(scope="module")
def whole(tmp_path_factory, shared):
    """A run of the toy that computes once a picture."""
    workdir = tmp_path_factory.mktemp("runs") / "whole"
    fit(configured(), str(workdir), shared)
    assert shared.counts() == [("first", 0), ("second", 2 * RECORDS)]
    return workdir


def relative(one, other):
    """The largest difference of each network's arrays, as a share of the largest value."""
    assert one.keys() == other.keys()
    return max(np.abs(one[name] - other[name]).max() / max(np.abs(other[name]).max(), 1e-3)
               for name in one if name.startswith(("['nets']", "['ema']")))


def test_computed_at_every_step_it_is_the_same_training(whole, tmp_path, shared):
    """Without room for all pictures nothing is kept."""
    fit(configured(**{"data.cache_gib": 0.0}), str(tmp_path / "without"), shared)
    assert shared.counts() == [("first", 0), ("second", 0)]
    assert relative(final(whole), final(tmp_path / "without")) < 1e-6


@pytest.mark.parametrize("changes", [{"data.crop": 8}, {"data.augment": "flip"},
                                     {"data.permute_channels": True}], ids=str)
def test_pictures_that_change_are_not_kept(changes):
    config = common.get_config("tests.toy", ())
    config.data.resize = 16
    assert pipeline.Data(config.data).fixed
    config.data.crop = 16  # of 16 px: the whole picture
    assert pipeline.Data(config.data).fixed
    config.update_from_flattened_dict(changes)
    assert not pipeline.Data(config.data).fixed


def test_a_resumed_run_computes_anew(whole, tmp_path, shared):
    fit(configured(**{"phase.second.steps": 2}), str(tmp_path / "run"), shared)
    shared.counts()
    fit(configured(), str(tmp_path / "run"), shared)
    ((phase, count),) = shared.counts()
    assert phase == "second" and 0 < count <= 2 * RECORDS
    assert_same(final(whole), final(tmp_path / "run"))


def test_several_steps_a_call_and_micro_batches(whole, tmp_path, shared):
    changes = {"steps_per_call": 3, "phase.second.microbatch": 4}
    fit(configured(**changes), str(tmp_path / "run"), shared)
    assert shared.counts()[1] == ("second", 2 * RECORDS)
    assert_same(final(whole), final(tmp_path / "run"), atol=1e-6)


@pytest.mark.parametrize("how", ["unrolled", "vmap"])
def test_runs_in_lockstep_have_their_own(whole, tmp_path, shared, how):
    """They differ in a weight of the first phase, so in the network that looks at the pictures."""
    folders = [str(tmp_path / name) for name in ("a", "b")]
    configs = [configured(**{"loss.l1.weight": weight}) for weight in (1.0, 0.0)]
    with (Member(configs[0], folders[0], shared, "a") as one,
          Member(configs[1], folders[1], shared, "b") as two):
        fit_members([one, two], shared, how)
    assert shared.counts() == 2 * [("first", 0)] + 2 * [("second", 2 * RECORDS)]
    assert_same(final(whole), final(folders[0]), atol=1e-5)
    fit(configs[1], str(tmp_path / "alone"), shared)
    shared.counts()
    assert_same(final(tmp_path / "alone"), final(folders[1]), atol=1e-5)
    assert relative(final(folders[0]), final(folders[1])) > 1e-3


def test_two_processes_of_two_devices_equal_one(whole, tmp_path):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    flags = [f"--config.{knob}={value}" for knob, value in FLAGS.items()]
    processes = [launch(tmp_path / "two", f"--coordinator=localhost:{port}", "--process_count=2",
                        f"--process_id={number}", *flags, config="tests/toy.py:slow", devices=2)
                 for number in range(2)]
    outputs = [process.communicate(timeout=300) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
    assert_same(final(whole), final(tmp_path / "two"), atol=1e-6)


def test_unpaired_pictures_of_the_second_stage(tmp_path, shared):
    """Two dark pictures and two bright ones make four pairs, and are encoded once each."""
    first = test_lightendiffusion.build("smoke,autoencoder_only")
    weights.save(tmp_path / "one.safetensors", first.config,
                 test_lightendiffusion.initial(first), {})
    flags = test_lightendiffusion.unpaired(tmp_path) | dict(
        init__autoencoder=str(tmp_path / "one.safetensors"), data__crop=0, data__augment="none",
        log__samples=0, checkpoint__every=1000, phase__denoiser__steps=3,
        phase__denoiser__batch_size=4)
    found = []
    for room, count in ((1.0, 4), (0.0, 0)):
        config = test_lightendiffusion.build("smoke,denoiser_only", **flags,
                                             data__cache_gib=room).config
        found.append(jax.device_get(fit(config, str(tmp_path / str(room)), shared)))
        assert shared.counts() == [("denoiser", count)]
    for one, other in zip(*(jax.tree.leaves((state.nets, state.ema)) for state in found),
                          strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-6, atol=1e-6 * np.abs(other).max())
