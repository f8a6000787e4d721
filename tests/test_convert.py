"""Official checkpoints to weights files: round trip, names, shapes, files that hold code."""

import hashlib
import os
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

from lljax import convert, method, weights
from lljax import tensors as tensors_lib
from lljax.errors import InputError
from lljax.methods import zerodce
from tests import test_tensors


def official(seed=0):
    """A checkpoint as the official program names it, with random values."""
    random, tensors = np.random.RandomState(seed), {}
    for i, (cin, cout) in enumerate([(3, 32), (32, 32), (32, 32), (32, 32), (64, 32), (64, 32),
                                     (64, 24)], 1):
        tensors[f"e_conv{i}.weight"] = random.standard_normal((cout, cin, 3, 3)) / 50
        tensors[f"e_conv{i}.bias"] = random.standard_normal(cout) / 50
    return {name: value.astype(np.float32) for name, value in tensors.items()}


@pytest.fixture
def torch():
    return pytest.importorskip("torch", reason="writes PyTorch files")


def forward(torch, tensors, picture):
    """Curves by PyTorch, from its own layout: the converted network must give these."""
    f = torch.nn.functional
    t = {name: torch.from_numpy(value) for name, value in tensors.items()}

    def conv(i, *x):
        return f.conv2d(torch.cat(x, 1), t[f"e_conv{i}.weight"], t[f"e_conv{i}.bias"], padding=1)

    x = [torch.from_numpy(picture).permute(0, 3, 1, 2)]
    for i in range(1, 5):
        x.append(f.relu(conv(i, x[-1])))
    x.append(f.relu(conv(5, x[3], x[4])))
    x.append(f.relu(conv(6, x[2], x[5])))
    return torch.tanh(conv(7, x[1], x[6])).permute(0, 2, 3, 1).numpy()


@pytest.mark.parametrize("layout", ["plain", "data parallel", "nested"])
def test_round_trip_through_pytorch(layout, torch, tmp_path):
    tensors = official()
    content = {k: torch.from_numpy(v) for k, v in tensors.items()}
    if layout == "data parallel":
        content = {f"module.{k}": v for k, v in content.items()}
    if layout == "nested":
        content = {"state_dict": content, "epoch": 3}
    source, out = tmp_path / "Epoch99.pth", tmp_path / "out.safetensors"
    torch.save(content, source)
    convert.convert("zerodce", [str(source)], str(out))

    config, nets, card = weights.load(str(out))
    assert config.method == "zerodce"
    assert card["source"] == [{"file": "Epoch99.pth",
                               "sha256": hashlib.sha256(source.read_bytes()).hexdigest()}]
    assert card["licence"] == "converted; the licence of the original applies"
    picture = np.random.RandomState(1).uniform(size=(1, 13, 17, 3)).astype(np.float32)
    curves = method.load(config).estimate(nets, picture, jax.random.key(0))["curves"]
    np.testing.assert_allclose(curves, forward(torch, tensors, picture), atol=1e-6)


def written(tmp_path, tensors, name="in.safetensors"):
    save_file(tensors, tmp_path / name)
    return str(tmp_path / name)


def refusal(tmp_path, *paths):
    out = tmp_path / "out.safetensors"
    with pytest.raises(InputError) as error:
        convert.convert("zerodce", paths, str(out))
    assert not out.exists() and "\n" not in str(error.value)
    return str(error.value)


def test_several_files_make_one_network(tmp_path):
    tensors = official()
    halves = [{k: v for k, v in tensors.items() if k.endswith(part)} for part in ("weight", "bias")]
    paths = [written(tmp_path, half, f"{i}.safetensors") for i, half in enumerate(halves)]
    convert.convert("zerodce", paths, str(tmp_path / "out.safetensors"))
    _, nets, card = weights.load(str(tmp_path / "out.safetensors"))
    np.testing.assert_array_equal(nets["curve"]["params"]["conv3"]["kernel"],
                                  tensors["e_conv3.weight"].transpose(2, 3, 1, 0))
    assert [s["file"] for s in card["source"]] == ["0.safetensors", "1.safetensors"]


def test_one_name_in_two_files_is_refused(tmp_path):
    path = written(tmp_path, official())
    assert "'e_conv1.bias' (and 13 more)" in refusal(tmp_path, path, path)


def test_unknown_and_missing_keys_are_listed(tmp_path):
    tensors = official()
    tensors["e_conv8.weight"] = tensors.pop("e_conv2.weight")
    tensors["extra"] = np.zeros(1, np.float32)
    message = refusal(tmp_path, written(tmp_path, tensors))
    assert "unknown keys: e_conv8.weight, extra" in message
    assert "missing keys: e_conv2.weight" in message


def test_counters_of_batches_are_left_out(tmp_path):
    tensors = official() | {"bn.num_batches_tracked": np.zeros((), np.int64)}
    convert.convert("zerodce", [written(tmp_path, tensors)], str(tmp_path / "out.safetensors"))
    assert set(weights.load(str(tmp_path / "out.safetensors"))[1]) == {"curve"}


def test_wrong_shapes_are_listed(tmp_path):
    tensors = official()
    tensors["e_conv7.bias"] = np.zeros(3, np.float32)
    message = refusal(tmp_path, written(tmp_path, tensors))
    assert "curve/params/conv7/bias (3,) instead of (24,)" in message


def test_an_existing_file_is_kept_unless_told(tmp_path):
    source, out = written(tmp_path, official()), tmp_path / "out.safetensors"
    out.write_text("precious")
    with pytest.raises(InputError, match="exists"):
        convert.convert("zerodce", [source], str(out))
    assert out.read_text() == "precious"
    convert.convert("zerodce", [source], str(out), overwrite=True)
    assert set(weights.load(str(out))[1]) == {"curve"}


class _Payload:
    """Unpickled by a careless reader, it makes a folder."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


def test_a_file_with_code_is_refused_and_not_run(torch, tmp_path):
    payload = _Payload(tmp_path / "made by the file")
    torch.save({"e_conv1.weight": payload}, tmp_path / "bad.pth")
    assert "refused" in refusal(tmp_path, str(tmp_path / "bad.pth"))
    (tmp_path / "bare.pth").write_bytes(pickle.dumps(payload))
    assert "refused" in refusal(tmp_path, str(tmp_path / "bare.pth"))
    assert not (tmp_path / "made by the file").exists()


@pytest.mark.parametrize("content", [b"", b"text", b"\x80\x04N.", b"PK\x03\x04broken"])
def test_damaged_files_are_refused(content, torch, tmp_path):
    (tmp_path / "damaged.pth").write_bytes(content)
    assert "damaged.pth" in refusal(tmp_path, str(tmp_path / "damaged.pth"))


def test_other_files_are_refused(torch, tmp_path):
    torch.save([torch.zeros(3)], tmp_path / "list.pth")
    assert "holds no dict of named tensors" in refusal(tmp_path, str(tmp_path / "list.pth"))
    assert "no file" in refusal(tmp_path, str(tmp_path / "absent.pth"))


def test_the_real_checkpoint(shared, tmp_path):
    source = str(shared / "data/weights/zero_dce/Epoch99.pth")
    convert.convert("zerodce", [source], str(tmp_path / "out.safetensors"))
    _, nets, card = weights.load(str(tmp_path / "out.safetensors"))
    assert card["source"][0]["sha256"].startswith("a4395acb")
    theirs = tensors_lib.read(source)["e_conv5.weight"]
    np.testing.assert_array_equal(nets["curve"]["params"]["conv5"]["kernel"],
                                  theirs.transpose(2, 3, 1, 0))


class Two(method.Method):
    """Networks `a` and, not with the preset `paper`, `b`; a file of `a` holds an old `b` too."""

    def networks(self):
        return ("a",) if self.config.data.resize == 512 else ("a", "b")

    def init(self, key, batch):
        return {net: {"params": {"w": jnp.zeros(2)}} for net in self.networks()}

    def official_keys(self):
        return {f"{net}/w": (f"{net}/params/w", np.asarray) for net in self.networks()}

    @classmethod
    def official_presets(cls, names):
        return "" if "b/w" in names else "paper"

    @classmethod
    def official_unused(cls, names):
        return {"b/w", "old"} & set(names) if "a/w" in names else set()


@pytest.fixture
def two(tmp_path, monkeypatch):
    """A toy in a shipped method's place; files of its networks, one a TensorFlow checkpoint."""
    monkeypatch.setattr(zerodce, "Method", Two)
    a = {"a/w": np.float32([1, 2]), "b/w": np.float32([9, 9]), "old": np.float32(0),
         "a/w/Adam": np.float32([0, 0])}
    return (test_tensors.write(tmp_path, a, 2, "a"),
            written(tmp_path, {"b/w": np.float32([3, 4])}, "b.safetensors"))


def test_leftovers_are_dropped_file_by_file(two, tmp_path):
    out = str(tmp_path / "out.safetensors")
    data = [two[0].replace("index", f"data-0000{i}-of-00002") for i in range(2)]
    done = convert.convert("zerodce", [*two, *data], out)
    assert done == convert.Converted("", False, ("a", "b"))
    _, nets, card = weights.load(out)
    assert nets["a"]["params"]["w"].tolist() == [1, 2]
    assert nets["b"]["params"]["w"].tolist() == [3, 4]
    files = [two[0], *data, two[1]]
    assert [s["file"] for s in card["source"]] == [os.path.basename(path) for path in files]
    for source, path in zip(card["source"], files, strict=True):
        with open(path, "rb") as file:
            assert source["sha256"] == hashlib.sha256(file.read()).hexdigest()


def test_the_variant_is_recognised_unless_told(two, tmp_path):
    out = str(tmp_path / "out.safetensors")
    done = convert.convert("zerodce", [two[0]], out)
    assert done == convert.Converted("paper", True, ("a",))
    config, nets, card = weights.load(out)
    assert config.data.resize == 512 and set(nets) == {"a"} and card["variant"] == "paper"

    with pytest.raises(InputError, match=r"presets official.*missing keys: b/w \(nothing of b"):
        convert.convert("zerodce", [two[0]], out, "official", overwrite=True)
    with pytest.raises(InputError, match="presets paper: unknown keys: b/w; missing keys: none$"):
        convert.convert("zerodce", two, out, "paper", overwrite=True)
    assert weights.load(out)[2] == card
    done = convert.convert("zerodce", two, out, "official", overwrite=True)
    assert done == convert.Converted("official", False, ("a", "b"))
    assert weights.load(out)[2]["variant"] == "official"


def test_an_unknown_method_names_the_known(tmp_path):
    with pytest.raises(InputError, match="zerodce"):
        convert.convert("zerodec", [written(tmp_path, official())], str(tmp_path / "o.safetensors"))
