"""Weights files: what is saved comes back, and what is not ours is refused."""

import hashlib
import json

import numpy as np
import pytest
import safetensors.numpy
from ml_collections import ConfigDict

from lljax import weights
from lljax.errors import InputError

CONFIG = ConfigDict({"method": "zerodce", "model": {"width": 4}, "rate": 1e-4})
CARD = {"licence": "Apache-2.0", "scores": {"psnr": 20.5}}


def nets():
    rng = np.random.default_rng(0)
    return {"curve": {"params": {"conv1": {"kernel": rng.random((3, 2, 5)).astype(np.float32).T,
                                           "bias": np.float32(2)}}},
            "other": {"params": {"x": np.arange(3)}, "batch_stats": {"mean": np.zeros(2)}}}


def test_round_trip(tmp_path):
    path = tmp_path / "a.safetensors"
    weights.save(path, CONFIG, nets(), CARD)
    config, loaded, card = weights.load(path)
    assert config.to_dict() == CONFIG.to_dict() and config.is_locked and card == CARD
    np.testing.assert_equal(loaded, nets())
    assert loaded["curve"]["params"]["conv1"]["bias"].shape == ()
    assert set(safetensors.numpy.load_file(path)) == {
        "curve/params/conv1/kernel", "curve/params/conv1/bias", "other/params/x",
        "other/batch_stats/mean"}
    assert weights.describe(path)[1] == CARD
    assert list(tmp_path.iterdir()) == [path]


def test_nothing_is_overwritten_unasked(tmp_path):
    path = tmp_path / "a.safetensors"
    weights.save(path, CONFIG, nets(), {"n": 1})
    with pytest.raises(InputError, match="exists already"):
        weights.save(path, CONFIG, nets(), {"n": 2})
    assert weights.load(path)[2] == {"n": 1}
    weights.save(path, CONFIG, nets(), {"n": 2}, overwrite=True)
    assert weights.load(path)[2] == {"n": 2}


def test_bad_arguments(tmp_path):
    for path, match in ((tmp_path / "a.bin", "ends in"), (tmp_path / "no" / "a.safetensors",
                                                          "does not exist")):
        with pytest.raises(InputError, match=match):
            weights.save(path, CONFIG, nets(), CARD)
    with pytest.raises(ValueError, match="slash"):
        weights.save(tmp_path / "a.safetensors", CONFIG, {"a/b": {"x": np.zeros(1)}}, CARD)
    assert not list(tmp_path.iterdir())


def test_foreign_files(tmp_path):
    checkpoint, foreign = tmp_path / "Epoch99.pth", tmp_path / "foreign.safetensors"
    checkpoint.write_bytes(b"PK\x03\x04" + bytes(200))
    safetensors.numpy.save_file({"x": np.zeros(2)}, foreign)
    for path, match in ((checkpoint, "lljax convert"), (foreign, "not written by lljax"),
                        (tmp_path / "none.safetensors", "no such file")):
        with pytest.raises(InputError, match=match) as caught:
            weights.load(path)
        assert path.name in str(caught.value)


def test_shipped_weights_load():
    default, *others = weights.list_weights()
    assert default == weights.DEFAULT and others == sorted(others)
    for name, path in weights.shipped().items():
        config, loaded, card = weights.load(path)
        assert loaded and card["licence"], name
        with open(path.removesuffix(".safetensors") + ".json") as file:
            beside = json.load(file)
        with open(path, "rb") as file:
            assert beside["sha256"] == hashlib.file_digest(file, "sha256").hexdigest()
        assert beside["method"] == config.method and beside["seed"] == config.seed
        assert {"licence", "data", "hardware", "commit", "time", "scores"} <= card.keys()
        assert card["scores"]["psnr"]["ci95"]
