"""What a phase needs of each picture: computed once where the pictures stay the same, and the same
training as where it is computed at every step."""

import functools
import socket

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lljax.configs import common
from lljax.data import pipeline
from lljax.training.loop import fit, fit_members
from lljax.training.member import Member
from lljax.training.shared import Shared
from tests import test_lightendiffusion as ld
from tests import toy
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
    config = toy.get_config("slow,second")
    config.update_from_flattened_dict({**FLAGS, **changes})
    return config


@pytest.fixture(scope="module")
def shared():
    with Watched() as one:
        yield one


@pytest.fixture(scope="module")
def whole(tmp_path_factory, shared):
    """A run of the toy's second phase, which looks at pictures with a frozen network."""
    workdir = tmp_path_factory.mktemp("runs") / "whole"
    fit(configured(), str(workdir), shared)
    assert shared.counts() == [("second", 2 * RECORDS)]
    return workdir


def relative(one, other):
    """The largest difference of each network's arrays, as a share of the largest value."""
    assert one.keys() == other.keys()
    return max(np.abs(one[name] - other[name]).max() / max(np.abs(other[name]).max(), 1e-3)
               for name in one if name.startswith(("['nets']", "['ema']")))


def test_computed_at_every_step_it_is_the_same_training(whole, tmp_path, shared):
    """Without room for all pictures nothing is kept."""
    fit(configured(**{"data.cache_gib": 0.0}), str(tmp_path / "without"), shared)
    assert shared.counts() == [("second", 0)]
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


def test_runs_in_lockstep_have_their_own(whole, tmp_path, shared):
    """They differ in the seed, so in the network that looks at the pictures; all steps in one
    call."""
    folders = [str(tmp_path / name) for name in ("a", "b")]
    configs = [configured(seed=seed, steps_per_call=3) for seed in (0, 1)]
    with (Member(configs[0], folders[0], shared, "a") as one,
          Member(configs[1], folders[1], shared, "b") as two):
        fit_members([one, two], shared, "vmap")
    assert shared.counts() == 2 * [("second", 2 * RECORDS)]
    assert_same(final(whole), final(folders[0]), atol=1e-5)
    fit(configured(seed=1), str(tmp_path / "alone"), shared)
    shared.counts()
    assert_same(final(tmp_path / "alone"), final(folders[1]), atol=1e-5)
    assert relative(final(folders[0]), final(folders[1])) > 1e-3


def test_processes_devices_and_micro_batches_equal_one(whole, tmp_path):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    flags = [f"--config.{knob}={value}" for knob, value in {
        **FLAGS, "phase.second.microbatch": 1}.items()]
    flags += [f"--coordinator=localhost:{port}", "--process_count=2"]
    processes = [launch(tmp_path / "two", *flags, f"--process_id={number}",
                        config="tests/toy.py:slow,second", devices=2) for number in range(2)]
    outputs = [process.communicate(timeout=300) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
    assert_same(final(whole), final(tmp_path / "two"), atol=1e-6)


def test_the_second_stage_of_unpaired_pictures(tmp_path, shared):
    """Two dark pictures and two bright ones make four pairs, and are encoded once each."""
    model = ld.build("smoke,denoiser_only", data__crop=0, data__augment="none",
                     **ld.unpaired(tmp_path))
    nets, data = ld.initial(model), shared.data(model.config)
    add = shared.features(model.config, model, "denoiser", nets)
    stream, names = data.batches(0, 0, 4), set()
    for _ in range(3):  # the third begins another epoch
        drawn, of_it = next(stream)
        names |= set(of_it)
        batch = add(drawn)
    assert shared.counts() == [("denoiser", 4)] and len(names) > 2

    terms = functools.partial(jax.jit(model.denoiser_terms), nets)
    with_them = ld.prepared(model, pipeline.on_device(batch, 0, 0), 1)
    features = with_them.pop("features")
    expected = terms(with_them)
    nothing = {role: jnp.full_like(with_them[role], jnp.nan) for role in ("low", "high")}
    found = terms(with_them | nothing | {"features": features})
    assert found.keys() == expected.keys() == {"noise", "consistency"}
    for name in found:
        np.testing.assert_allclose(found[name], expected[name], rtol=1e-6, err_msg=name)
