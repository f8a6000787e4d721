"""Exported programs give what the method gives, for any size, without lljax."""

import dataclasses
import importlib.util
import subprocess
import sys
import types

import jax
import numpy as np
import pytest
from jax import export as jax_export
from ml_collections import ConfigDict

from lljax import cli, images, weights
from lljax import config as config_lib
from lljax import method as method_lib
from lljax.errors import InputError
from lljax.inference import enhancer, export

pytest.importorskip("flatbuffers", reason="flatbuffers is absent (pip install 'lljax[export]')")

# Small knobs: what is tested is that sides may stay open, not how wide the networks are.
SMALL = {
    "zerodce": {"model.width": 4, "model.depth": 3, "model.iterations": 2},
    "zerodcepp": {"model.width": 4, "model.depth": 3, "model.iterations": 2},
    "retinexnet": {"model.width": 4, "model.depth": 1},
}


def absent(*modules):
    """Skips a test where one of the modules is not installed."""
    missing = [name for name in modules if importlib.util.find_spec(name) is None]
    return pytest.mark.skipif(bool(missing), reason=f"{', '.join(missing)} is absent: "
                                                    "docs/export.md says how to get it")


def small(name):
    config = config_lib.default(name, "smoke")
    settings = [f"{key}={value}" for key, value in SMALL.get(name, {}).items()]
    method = method_lib.load(config_lib.change(config, settings))
    blank = np.zeros((1, 64, 64, 3), np.float32)
    return method, method.init(jax.random.key(0), {"low": blank, "high": blank})


class Asking(method_lib.Method):
    """Asks how large the picture is: only a fixed size can be exported."""

    def __init__(self):
        super().__init__(ConfigDict(dict(method="asking")))

    def estimate(self, nets, low, key):
        return {"gain": low.mean((1, 2), keepdims=True) + (1 if low.shape[1] < 100 else 2)}

    def apply(self, nets, low, maps):
        return low * maps["gain"]


@pytest.fixture(scope="module")
def curve(tmp_path_factory):
    """(file of weights, method, networks)."""
    method, nets = small("zerodce")
    path = tmp_path_factory.mktemp("weights") / "small.safetensors"
    weights.save(path, method.config, nets, {"licence": "test"})
    return path, method, nets


def test_the_command_writes_a_program_that_runs_without_lljax(curve, tmp_path, capsys):
    path, method, nets = curve
    out = tmp_path / "m.stablehlo"
    assert cli.main(["lljax", "export", str(path), "-o", str(out)]) == 0
    assert "any size" in (said := capsys.readouterr().out) and "largest difference" in said
    low = np.random.default_rng(0).random((2, 19, 33, 3), np.float32)
    np.save(tmp_path / "low.npy", low)
    code = ("import sys, numpy as np\nfrom jax import export\n"
            "program = export.deserialize(bytearray(open('m.stablehlo', 'rb').read()))\n"
            "np.save('bright.npy', program.call(np.load('low.npy')))\n"
            "assert 'lljax' not in sys.modules and program.platforms == ('cpu', 'cuda', 'tpu')\n")
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True, timeout=120)
    expected = np.asarray(jax.jit(method.enhance)(nets, low, jax.random.key(0))).clip(0, 1)
    np.testing.assert_allclose(np.load(tmp_path / "bright.npy"), expected, atol=1e-5)
    assert cli.main(["lljax", "export", str(path), "-o", str(out), "--overwrite", "--size",
                     "24x40"]) == 0
    assert "of 24 x 40" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["default", "retinexnet"])
def test_a_method_with_a_multiple_pads_by_itself(name, tmp_path):
    method, nets = enhancer.load_method(weights.DEFAULT) if name == "default" else small(name)
    done = export.export(method, nets, tmp_path / "m.stablehlo")
    assert done.size is None and done.error < 1e-4 and len(done.checked) == 2
    assert all(side % method.multiple for size in done.checked for side in size)


@pytest.mark.parametrize("side, longer", [(5, 8), (1, 8), (3, 8), (8, 8), (4, 8), (9, 16)])
def test_padding_is_that_of_pictures(side, longer):
    picture = np.arange(side * 3.0).reshape(side, 1, 3)
    found = picture[np.asarray(export._mirrored(side, longer))]
    np.testing.assert_array_equal(found, images.pad(picture, longer - side, 0))


def test_a_method_that_asks_for_the_size_needs_one(tmp_path):
    out = tmp_path / "m.stablehlo"
    with pytest.raises(InputError, match="method asking.*give --size HxW"):
        export.export(Asking(), {}, out)
    assert not list(tmp_path.iterdir())
    done = export.export(Asking(), {}, out, size=(6, 9))
    assert done.size == (6, 9) and done.error < 1e-6
    program = jax_export.deserialize(bytearray(out.read_bytes()))
    assert program.in_avals[0].shape == (1, 6, 9, 3)


def test_a_program_that_differs_is_not_kept(monkeypatch, tmp_path):
    right = export.program
    monkeypatch.setattr(export, "program", lambda *arguments: right(*arguments) + 0.01)
    with pytest.raises(InputError, match="differs from JAX by 0.01"):
        export.export(Asking(), {}, tmp_path / "m.stablehlo", size=(6, 9))
    assert not list(tmp_path.iterdir())


@absent("jax2onnx", "onnxruntime")
@pytest.mark.parametrize("name", ["zerodcepp", "zerodce"])
def test_onnx_of_any_size(name, tmp_path):
    import onnxruntime
    method, nets = small(name)
    done = export.export(method, nets, tmp_path / "m.onnx")
    assert done.size is None and done.error < 1e-5 and len(done.checked) == 2
    session = onnxruntime.InferenceSession(tmp_path / "m.onnx")
    low = np.random.default_rng(0).random((3, 24, 36, 3), np.float32)
    found, = session.run(["enhanced"], {"low": low})
    expected = np.asarray(jax.jit(method.enhance)(nets, low, jax.random.key(0))).clip(0, 1)
    np.testing.assert_allclose(found, expected, atol=1e-5)


@absent("tensorflow", "ai_edge_litert")
def test_tflite_of_two_sizes(tmp_path):
    method, nets = small("zerodcepp")
    for size in ((24, 40), (37, 50)):
        done = export.export(method, nets, tmp_path / f"{size[0]}.tflite", size=size)
        assert (done.size, done.checked) == (size, (size,)) and done.error < 1e-5


def test_what_jax2onnx_gets_holds_no_pads_of_open_sizes():
    method, nets = small("zerodcepp")
    spec = jax.ShapeDtypeStruct(jax_export.symbolic_shape("b, h, w, 3"), np.float32)
    traced = jax.make_jaxpr(lambda low: export.program(method, nets, method.multiple, low))(spec)
    again = jax.jit(lambda low: export._run(traced.jaxpr, traced.consts, [low])[0])
    assert " pad[" in str(traced) and " pad[" not in str(jax.make_jaxpr(again)(spec))
    low = np.random.default_rng(0).random((2, 24, 36, 3), np.float32)
    expected = np.asarray(jax.jit(method.enhance)(nets, low, jax.random.key(0))).clip(0, 1)
    np.testing.assert_allclose(jax_export.export(again)(spec).call(low), expected, atol=1e-5)


def test_packages_that_are_absent_are_named(monkeypatch, curve, tmp_path):
    nothing = types.SimpleNamespace(util=types.SimpleNamespace(find_spec=lambda name: None))
    monkeypatch.setattr(export, "importlib", nothing)
    for suffix, message in ((".onnx", "needs jax2onnx; .* onnx-env/bin/pip install jax2onnx"),
                            (".tflite", r"needs tensorflow; pip install 'lljax\[tflite\]'"),
                            (".stablehlo", r"needs flatbuffers; pip install 'lljax\[export\]'")):
        with pytest.raises(InputError, match=message) as raised:
            cli.main(["lljax", "export", str(curve[0]), "-o", str(tmp_path / f"m{suffix}"),
                      "--size", "24x40"])
        assert "\n" not in str(raised.value)


def test_what_jax2onnx_does_not_convert_is_said(monkeypatch, curve, tmp_path):
    def refuse(*arguments, **options):
        raise RuntimeError("no such\noperation")

    monkeypatch.setitem(sys.modules, "jax2onnx", types.SimpleNamespace(to_onnx=refuse))
    monkeypatch.setattr(export, "check", lambda *arguments: None)
    _, method, nets = curve
    for size, message in ((None, r"for any size \(RuntimeError: no such operation\); give --size"),
                          ((8, 9), r"not convert it \(RuntimeError: no such operation\)$")):
        with pytest.raises(InputError, match=message):
            export.export(method, nets, tmp_path / "m.onnx", size=size)
    assert not list(tmp_path.iterdir())


def test_a_program_that_does_not_run_is_not_kept(monkeypatch, tmp_path):
    def convert(method, nets, size, seed):
        return 1, b"no program"

    form = export._FORMATS[".stablehlo"]
    monkeypatch.setitem(export._FORMATS, ".stablehlo", dataclasses.replace(form, convert=convert))
    with pytest.raises(InputError, match="does not run the exported program") as raised:
        export.export(Asking(), {}, tmp_path / "m.stablehlo", size=(6, 9))
    assert "\n" not in str(raised.value) and not list(tmp_path.iterdir())


def test_mistakes_are_named(curve, tmp_path):
    path = str(curve[0])
    taken = tmp_path / "m.stablehlo"
    taken.write_text("mine")
    for target, message in ((taken, "exists already"),
                            (tmp_path / "m.tflite", "is for one size of picture; give --size HxW"),
                            (tmp_path / "m.pb", "ends in .stablehlo, .onnx, .tflite"),
                            (tmp_path / "no" / "m.stablehlo", "folder does not exist")):
        with pytest.raises(InputError, match=message):
            cli.main(["lljax", "export", path, "-o", str(target)])
    assert taken.read_text() == "mine"
    for size in ("12", "12x", "0x5", "axb"):
        with pytest.raises(InputError, match="--size"):
            cli.main(["lljax", "export", path, "-o", str(tmp_path / "new.stablehlo"), "--size",
                      size])
