"""The denoiser: what it removes and where, tiles, threads, mistakes; settings at use reach it."""

import importlib.util
import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image

from lljax import cli, denoise, weights
from lljax import config as config_lib
from lljax import method as method_lib
from lljax.errors import InputError
from lljax.evaluation import evaluate
from lljax.inference import enhancer as enhancer_lib

BM3D = pytest.param("bm3d", marks=pytest.mark.skipif(
    importlib.util.find_spec("bm3dornl") is None, reason="bm3dornl is not installed"))


class Method(method_lib.Method):
    """The simplest Retinex: the illumination is the brightest channel, the result R I^gamma."""

    def __init__(self, config):
        super().__init__(config)
        denoise.check(config.denoise)
        self.halo = denoise.halo(config.denoise)

    def init(self, key, batch):
        return {"gamma": {"params": jnp.zeros(self.config.model.width)}}

    def estimate(self, nets, low, key):
        illumination = low.max(-1, keepdims=True) + 0.01
        reflectance = low / illumination
        return {"reflectance": denoise.denoise(self.config.denoise, reflectance, illumination),
                "illumination": illumination}

    def apply(self, nets, low, maps):
        return maps["reflectance"] * maps["illumination"] ** self.config.model.gamma


def save(path):
    config = ConfigDict(dict(method="tests.test_denoise", denoise=denoise.default(),
                             model=dict(gamma=0.4, width=3))).lock()
    weights.save(path, config, {"gamma": {"params": np.zeros(3, np.float32)}}, {})
    return str(path)


def clean(height=60, width=80):
    """Two flat patches and a slope."""
    x = np.full((height, width, 3), (0.7, 0.5, 0.3), np.float32)
    x[:, width // 2:] = (0.2, 0.4, 0.6)
    x[height // 2:] += np.linspace(0, 0.2, width, dtype=np.float32)[None, :, None]
    return x


def noisy(sigma=0.05, **size):
    x = clean(**size)
    x += np.random.default_rng(0).normal(0, sigma, x.shape).astype(np.float32)
    return x.clip(0, 1)


def dark(x, value=0.0):
    return np.full((*x.shape[:-1], 1), value, np.float32)


def run(config, reflectance, illumination):
    return np.asarray(jax.jit(lambda r, i: denoise.denoise(config, r, i))(
        reflectance[None], illumination[None]))[0]


@pytest.mark.parametrize("name", ["nlm", BM3D])
@pytest.mark.parametrize("sigma", [0.05, 0.0])
def test_noise_goes_and_edges_stay(name, sigma):
    x = noisy()
    result = run(denoise.default(name=name, sigma=sigma), x, dark(x))
    assert result.dtype == np.float32 and 0 <= result.min() and result.max() <= 1
    before, after = (np.sqrt(((y - clean()) ** 2).mean()) for y in (x, result))
    assert after < 0.5 * before
    np.testing.assert_allclose(result[:30, 38:42].mean((0, 2)), clean()[:30, 38:42].mean((0, 2)),
                               atol=0.03)
    np.testing.assert_array_equal(result, run(denoise.default(name=name, sigma=sigma), x, dark(x)))


def test_none_leaves_the_reflectance_and_no_trace():
    x = noisy()
    config = denoise.default()
    np.testing.assert_array_equal(run(config, x, dark(x)), x)
    assert "callback" not in str(jax.make_jaxpr(
        lambda r, i: denoise.denoise(config, r, i))(x[None], dark(x)[None]))


def test_it_fades_with_illumination():
    x = noisy()
    all_of_it = run(denoise.default(name="nlm"), x, dark(x)) - x
    for value, power, share in ((0.25, 1.0, 0.75), (0.5, 2.0, 0.25), (1.0, 1.0, 0), (1.5, 1.0, 0),
                                (1.0, 0.0, 1)):
        change = run(denoise.default(name="nlm", power=power), x, dark(x, value)) - x
        np.testing.assert_allclose(change, share * all_of_it, atol=1e-6)


@pytest.mark.parametrize("knob, value", [("sigma", 0.1), ("strength", 0.5), ("patch", 3),
                                         ("search", 3)])
def test_every_knob_of_nlm_does_something(knob, value):
    x = noisy()
    plain, other = (run(denoise.default(name="nlm", **change), x, dark(x))
                    for change in ({}, {knob: value}))
    assert np.abs(plain - other).max() > 1e-3


def test_strength_is_a_factor_of_the_noise():
    x = noisy()
    np.testing.assert_array_equal(
        run(denoise.default(name="nlm", sigma=0.04, strength=2.0), x, dark(x)),
        run(denoise.default(name="nlm", sigma=0.08), x, dark(x)))


@pytest.mark.parametrize("sigma", [0.02, 0.1])
def test_the_noise_is_estimated(sigma):
    assert denoise._sigma(denoise.default(sigma=0.0), noisy(sigma)) == pytest.approx(sigma, rel=0.1)
    assert denoise._sigma(denoise.default(sigma=0.0, strength=2.0),
                          noisy(sigma)) == pytest.approx(2 * sigma, rel=0.1)
    flat = np.full((9, 1, 3), 0.5, np.float32)
    np.testing.assert_allclose(run(denoise.default(name="nlm", sigma=0.0), flat, dark(flat)), flat,
                               atol=1e-6)


@pytest.mark.parametrize("patch, search", [(5, 6), (3, 2), (7, 4)])
def test_a_tile_with_its_halo_equals_the_whole_picture(patch, search):
    config = denoise.default(name="nlm", patch=patch, search=search)
    halo = denoise.halo(config)
    x = noisy(0.07)  # above sigma: below it every patch has the same weight
    whole = run(config, x, dark(x))
    tile = run(config, x[20:, 30:70], dark(x)[20:, 30:70])[halo:, halo:-halo]  # to the last row
    np.testing.assert_allclose(tile, whole[20 + halo:, 30 + halo:70 - halo], atol=1e-6)
    more = run(config, x[20:, 30:70], dark(x)[20:, 30:70])[halo:, halo:1 - halo]
    assert np.abs(more - whole[20 + halo:, 30 + halo:71 - halo]).max() > 1e-5


def test_who_sees_how_far():
    assert denoise.halo(denoise.default()) == 0
    assert denoise.halo(denoise.default(name="nlm")) == 8
    assert denoise.halo(denoise.default(name="nlm", sigma=0.0)) is None
    assert denoise.halo(denoise.default(name="bm3d")) is None


def test_batches_vmap_and_odd_sizes():
    config = denoise.default(name="nlm")
    batch = np.stack([noisy(height=11, width=7), 1 - noisy(height=11, width=7)])
    both = denoise.denoise(config, batch, dark(batch))
    mapped = jax.vmap(lambda r, i: denoise.denoise(config, r[None], i[None])[0])(batch, dark(batch))
    for i in range(2):
        np.testing.assert_array_equal(both[i], run(config, batch[i], dark(batch[i])))
    np.testing.assert_allclose(mapped, both, atol=1e-6)
    one = np.full((1, 1, 3), 0.3, np.float32)
    np.testing.assert_allclose(run(config, one, dark(one)), one, atol=1e-6)
    with pytest.raises(ValueError, match="belong|must be"):
        denoise.denoise(config, batch, dark(batch)[:, :5])


def test_threads_do_not_wait_for_each_other():
    """jax.pure_callback hangs here; a process of its own can be stopped."""
    code = ("import numpy as np, jax\nfrom concurrent.futures import ThreadPoolExecutor\n"
            "from lljax import denoise\nconfig = denoise.default(name='nlm', search=1, patch=3)\n"
            "r, i = np.ones((1, 400, 600, 3), np.float32), np.zeros((1, 400, 600, 1), np.float32)\n"
            "f = jax.jit(lambda r, i: denoise.denoise(config, r * 0.5, i))\n"
            "with ThreadPoolExecutor(4) as pool:\n"
            "    print(len(list(pool.map(lambda _: np.asarray(f(r, i)), range(12)))))\n")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.stdout == "12\n", done.stderr


def test_the_enhancer_runs_it_in_tiles(tmp_path):
    path = save(tmp_path / "a.safetensors")
    low = 0.2 * noisy(height=150, width=190)
    enhancer = enhancer_lib.load(path, settings=["denoise.name=nlm"])
    whole = enhancer.method.enhance(None, low[None], None)[0].clip(0, 1)
    with ThreadPoolExecutor(2) as pool:
        for result in pool.map(enhancer, [low, low]):
            np.testing.assert_allclose(result, whole, atol=2e-6)
    assert np.abs(enhancer_lib.load(path)(low) - whole).mean() > 1e-3
    estimated = enhancer_lib.load(path, settings=["denoise.name=nlm", "denoise.sigma=0"])
    assert estimated.method.halo is None and estimated(low).shape == low.shape


def test_settings_that_cannot_be_are_one_line(tmp_path):
    path = save(tmp_path / "a.safetensors")
    for settings, message in ((["denoise.nam=nlm"], 'Did you mean "denoise.name"'),
                              (["denoise.name=nml"], 'Did you mean "nlm"'),
                              (["model.width=4"], "gamma/params (3,) instead of (4,)")):
        with pytest.raises(InputError) as caught:
            enhancer_lib.load(path, settings=settings)
        assert message in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("changes, message", [
    (dict(name="bm4d"), 'Did you mean "bm3d"'), (dict(sigma=-0.1), "denoise.sigma is -0.1"),
    (dict(strength=0.0), "denoise.name=none"), (dict(power=-1.0), "denoise.power"),
    (dict(patch=4), "must be odd"), (dict(patch=1), "denoise.patch is 1"),
    (dict(search=0), "denoise.search is 0"), (dict(sigma=float("nan")), "denoise.sigma is nan")])
def test_what_cannot_be_is_said(changes, message):
    with pytest.raises(InputError) as caught:
        denoise.check(denoise.default(**changes))
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_a_missing_library_is_said(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    denoise.check(denoise.default())
    with pytest.raises(InputError, match=r"needs scikit-image: pip install 'lljax\[denoise\]'"):
        denoise.check(denoise.default(name="nlm"))
    with pytest.raises(InputError, match="Python 3.12.*non-commercial.*use denoise.name=nlm"):
        denoise.check(denoise.default(name="bm3d"))


def test_nothing_is_imported_before_it_is_used():
    code = "import sys, lljax.denoise\nassert not {'skimage', 'bm3dornl'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.fixture
def pairs(tmp_path):
    for role, scale in (("low", 0.2), ("high", 1)):
        (tmp_path / "pairs" / role).mkdir(parents=True)
        Image.fromarray((scale * 255 * noisy()).astype(np.uint8)).save(
            tmp_path / "pairs" / role / "a.png")
    return tmp_path / "pairs"


def test_the_command_enhances_with_settings(tmp_path, pairs):
    model = save(tmp_path / "a.safetensors")
    results = []
    for i, settings in enumerate(([], ["--set", "denoise.name=nlm", "--set=denoise.sigma=0.1"])):
        out = str(tmp_path / f"{i}.png")
        assert cli.main(["lljax", "enhance", str(pairs / "low" / "a.png"), "-o", out,
                         "--model", model, *settings]) == 0
        results.append(np.asarray(Image.open(out), np.float32))
    low = np.asarray(Image.open(pairs / "low" / "a.png"))
    np.testing.assert_array_equal(results[1], enhancer_lib.load(
        model, settings=["denoise.name=nlm", "denoise.sigma=0.1"])(low))
    assert np.abs(results[1] - results[0]).mean() > 1
    with pytest.raises(InputError, match='Did you mean "denoise"'):
        cli.main(["lljax", "enhance", str(pairs / "low"), "-o", str(tmp_path / "no"),
                  "--model", model, "--set", "denois.name=nlm"])
    assert not (tmp_path / "no").exists()


def test_evaluate_scores_with_and_without(tmp_path, pairs, capsys):
    model, out = save(tmp_path / "a.safetensors"), tmp_path / "out"
    flags = ["evaluate.py", "--weights", model, "--low", str(pairs / "low"),
             "--high", str(pairs / "high")]
    text = "denoise.name=nlm,denoise.sigma=0.1"
    assert evaluate.main([*flags, "--report", str(out), "--with", text,
                          "--with", "model.gamma=1"]) == 0
    saved = json.loads((out / "results.json").read_text())
    names = ["a", f"a with {text}", "a with model.gamma=1"]
    assert list(saved["systems"])[:3] == names and saved["models"] == {"a": model}
    assert saved["settings"] == {names[1]: "denoise.name=nlm, denoise.sigma=0.1",
                                 names[2]: "model.gamma=1"}
    scores = [saved["systems"][name]["psnr"]["mean"] for name in names]
    assert len(set(scores)) == 3
    assert saved["paired"]["against"] == "a"
    assert saved["paired"]["systems"][names[1]]["psnr"]["mean"] == pytest.approx(
        scores[1] - scores[0])
    assert names[1] in capsys.readouterr().out and (out / "report.html").exists()
    assert weights.scores(out / "results.json", model)["psnr"]["mean"] == scores[0]
    for more, message in ((["--with", text, "--with", text], "given 2 times"),
                          (["--with", "denoise.name"], "KEY=VALUE"),
                          (["--with", "denoise.sigma=x"], "not a number")):
        with pytest.raises(InputError, match=message):
            evaluate.main([*flags, *more])
    with pytest.raises(InputError, match="give --workdir W or --weights FILE"):
        evaluate.main(["evaluate.py", "--source", "demo", "--with", text])


def test_a_list_may_hold_commas():
    flags = evaluate._parse(["--weights", "w", "--with", "x.y=[1, 2],z=3"])
    rows = evaluate._variants({"a": "w"}, flags)
    assert rows == {"a": ("w", [], True),
                    "a with x.y=[1, 2],z=3": ("w", ["x.y=[1, 2]", "z=3"], True)}
    assert config_lib.change(ConfigDict({"x": (1,)}), ["x=[1, 2]"]).x == (1, 2)
