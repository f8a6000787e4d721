"""Tiles equal the whole picture, few programs serve many sizes, what goes in comes out."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from ml_collections import ConfigDict
from PIL import Image

import lljax
from lljax import cli, images, weights
from lljax import config as config_lib
from lljax import method as method_lib
from lljax.errors import InputError
from lljax.inference import enhancer as enhancer_lib
from lljax.inference.enhancer import Enhancer


class Local(method_lib.Method):
    """Three zero-padded 3 x 3 convolutions after a box mean of `multiple`: strictly local."""

    def __init__(self, multiple=1):
        super().__init__(ConfigDict())
        self.multiple = multiple
        self.halo = 3 * multiple

    def init(self, key, batch=None):
        keys = jax.random.split(key, 3)
        return {"net": {"params": [jax.random.normal(k, (3, 3, i, o)) / 4 for k, (i, o)
                                   in zip(keys, ((3, 6), (6, 6), (6, 3)), strict=True)]}}

    def estimate(self, nets, low, key):
        b, h, w, c = low.shape
        m = self.multiple
        x = low.reshape(b, h // m, m, w // m, m, c).mean((2, 4)) + 0.5
        for kernel in nets["net"]["params"]:
            x = jnp.sin(lax.conv_general_dilated(
                x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")))
        return {"small": x}

    def apply(self, nets, low, maps):
        m = self.multiple
        return low + 1.5 * maps["small"].repeat(m, 1).repeat(m, 2)


class Seeing(method_lib.Method):
    """Depends on the whole picture and on the key; `multiple` 4."""

    multiple = 4

    def __init__(self):
        super().__init__(ConfigDict())

    def estimate(self, nets, low, key):
        assert low.shape[1] % 4 == low.shape[2] % 4 == 0
        return {"mean": low.mean((1, 2)), "noise": jax.random.normal(key, low[:, ::4, ::4].shape)}

    def apply(self, nets, low, maps):
        noise = maps["noise"].repeat(4, 1).repeat(4, 2)
        return low * nets["gain"]["params"] + maps["mean"][:, None, None] + 0.1 * noise


class Staged(Local):
    """Local, but for the mean and the noise of a condensed copy, half as large."""

    staged, multiple, costly = True, 4, ("far",)

    def __init__(self):
        super().__init__(4)
        self.halo = 13

    def condense(self, nets, low):
        return {"half": super().estimate(nets, low, None)["small"].repeat(2, 1).repeat(2, 2)}

    def solve(self, nets, small, key):
        noise = jax.random.normal(key, small["half"].shape)
        return {"half": small["half"] - small["half"].mean((1, 2), keepdims=True) + 0.1 * noise,
                "mean": small["half"].mean((1, 2)), "far": small["half"][:, ::-1],
                "frames": jnp.stack([small["half"]] * 2, 1)}

    estimate = method_lib.Method.estimate

    def apply(self, nets, low, maps):
        return low + maps["half"].repeat(2, 1).repeat(2, 2) + maps["mean"][:, None, None]


def local(multiple=1):
    method = Local(multiple)
    return Enhancer(method, method.init(jax.random.key(1)))


def picture(height, width, seed=0):
    return np.random.default_rng(seed).random((height, width, 3), np.float32)


def whole(enhancer, low):
    """The method on the whole picture, padded to its multiple, without any tile."""
    multiple = enhancer.method.multiple
    height, width = low.shape[:2]
    low = images.pad(low, -height % multiple, -width % multiple)
    maps = jax.jit(enhancer.method.explain)(enhancer._nets, low[None], jax.random.key(0))
    return {name: np.asarray(value[0]) for name, value in maps.items()}


@pytest.mark.parametrize("multiple", [1, 4, 6])
@pytest.mark.parametrize("size", [(1, 1), (1, 200), (63, 64), (64, 64), (65, 67), (113, 176),
                                  (177, 127), (251, 307)])
def test_tiles_equal_the_whole_picture(multiple, size):
    enhancer, low = local(multiple), picture(*size)
    expected = whole(enhancer, low)
    found = enhancer.explain(low)
    np.testing.assert_allclose(found["enhanced"], expected["enhanced"][:size[0], :size[1]],
                               atol=2e-6)
    np.testing.assert_allclose(found["small"], expected["small"], atol=2e-6)
    assert found["enhanced"].dtype == np.float32
    assert low.size < 100 or found["enhanced"].min() < 0  # raw
    np.testing.assert_allclose(enhancer(low), found["enhanced"].clip(0, 1), atol=1e-6)


def test_a_halo_too_small_would_show():
    """The comparison above sees seams: with one pixel less of overlap it fails."""
    enhancer, low = local(), picture(150, 150)
    enhancer._halo = 2
    difference = enhancer.explain(low)["enhanced"] - whole(enhancer, low)["enhanced"]
    assert np.abs(difference).max() > 1e-3


@pytest.mark.parametrize("halo, multiple", [(0, 1), (7, 1), (8, 8), (40, 16), (5, 12)])
def test_the_spans_of_every_length(halo, multiple):
    method = Local()
    method.halo, method.multiple = halo, multiple
    enhancer = Enhancer(method, {})
    for length in range(multiple, 1500, multiple):
        spans = enhancer._cover(length)
        assert spans[0].start == spans[0].first == 0
        assert spans[-1].start + spans[-1].side == spans[-1].last == length
        assert len({span.side for span in spans}) == 1
        for a, b in zip(spans, spans[1:], strict=False):
            assert a.last == b.first and a.last <= a.start + a.side - halo
            assert b.first >= b.start + halo
        assert not any(value % multiple for span in spans for value in span)


def test_mixed_sizes_compile_a_handful_of_programs():
    enhancer = local()
    rng = np.random.default_rng(0)
    for height, width in rng.integers(64, 400, (30, 2)):
        assert enhancer(np.zeros((height, width, 3), np.uint8)).shape == (height, width, 3)
    assert enhancer.programs <= len(enhancer_lib._CPU_SIDES) ** 2
    before = enhancer.programs
    enhancer(np.zeros((height, width, 3), np.uint8))
    assert enhancer.programs == before


@functools.cache
def tiny(name):
    """A method and networks that brighten noticeably, with all their parts but few channels."""
    config = config_lib.default(name, "smoke")
    for knob, value in (("width", 4), ("unet_width", 4), ("levels", 2)):
        if knob in config.model:
            config.model[knob] = value
    method = method_lib.load(config)
    low = np.zeros((1, 64, 64, 3), np.float32)
    shapes = jax.eval_shape(method.init, jax.random.key(0), {"low": low, "high": low})
    rng = np.random.default_rng(0)

    def value(path, leaf):
        if len(leaf.shape) > 1:
            spread = (2 / math.prod(leaf.shape[:-1])) ** 0.5
            return rng.normal(0, spread, leaf.shape).astype(np.float32)
        return np.full(leaf.shape, path[-1].key in ("scale", "var"), np.float32)

    return method, jax.tree_util.tree_map_with_path(value, shapes)


@pytest.mark.parametrize("name", lljax.list_methods())
def test_every_method_on_odd_sizes(name):
    enhancer = Enhancer(*tiny(name))
    for size in ((1, 1), (7, 31)):
        low = picture(*size) * 0.4
        found = enhancer.explain(low)["enhanced"]
        assert found.shape == low.shape and np.isfinite(found).all()
        np.testing.assert_allclose(enhancer(low), found.clip(0, 1), atol=2e-6)


@pytest.mark.parametrize("name", [name for name in lljax.list_methods() if tiny(name)[0].placed])
def test_small_pictures_share_programs(name):
    """They lie in the corner of a larger tile, which the networks do not see."""
    enhancer = Enhancer(*tiny(name))
    sizes = np.random.default_rng(0).integers(113, 129, (9, 2)).tolist()
    for i, size in enumerate(sizes):
        low = picture(*size) * 0.4
        found = enhancer.explain(low)
        if i:
            continue  # comparing compiles, which takes time
        padded = enhancer_lib._Padded(low, enhancer.method.margins)
        tile = enhancer_lib._Tile.of(padded.height, padded.width)
        expected = {key: padded.crop(np.asarray(value[0])) for key, value in jax.jit(
            enhancer.method.explain)(enhancer._nets, padded.cut(tile), jax.random.key(0)).items()}
        assert found.keys() == expected.keys()
        for key, value in expected.items():
            np.testing.assert_allclose(found[key], value, atol=2e-6, err_msg=f"{key} {size}")
    assert np.abs(found["enhanced"] - low).max() > 0.05
    assert enhancer.programs <= 4 < len({tuple(size) for size in sizes})


def test_the_default_models_own_tiles():
    """Of a smooth picture and of noise: as the whole picture, at its real sides."""
    enhancer = lljax.load(weights.DEFAULT)
    slope = np.linspace(0.02, 0.4, 1500)[None, :, None] * np.linspace(0.5, 1, 708)[:, None, None]
    low = np.float32(slope * (1, 0.9, 0.8) + 0.05 * picture(708, 1500))
    found = enhancer.explain(low)["enhanced"]
    (_, side), = {(a.side, b.side) for a in enhancer._cover(708) for b in enhancer._cover(1500)}
    assert side < 1500  # it is cut
    np.testing.assert_allclose(found, whole(enhancer, low)["enhanced"], atol=1e-5)
    assert np.abs(found - low).max() > 0.2


def test_few_programs_serve_a_folder_of_photographs():
    enhancer = lljax.load(weights.DEFAULT)
    for least, most, count in ((64, 400, 25), (300, 1300, 25), (500, 6000, 9)):
        sides = {tuple(enhancer._cover(-(-int(side) // 12) * 12)[0].side for side in size)
                 for size in np.random.default_rng(0).integers(least, most, (300, 2))}
        assert len(sides) <= count < enhancer_lib._PROGRAMS


@pytest.mark.parametrize("name", lljax.list_methods())
def test_tiles_of_every_method_leave_no_seam(name, monkeypatch):
    """On a smooth picture they are the whole one up to rounding, which no eye could tell."""
    low = np.linspace(0.02, 0.5, 61 * 701 * 3, dtype=np.float32).reshape(701, 61, 3)
    low = np.ascontiguousarray(low.transpose(1, 0, 2))
    at_once = Enhancer(*tiny(name))
    at_once._sides = at_once._holding = []
    monkeypatch.setattr(enhancer_lib, "_CPU_SIDES", (20, 24))
    tiled = Enhancer(*tiny(name))
    expected, found = at_once.explain(low), tiled.explain(low)
    assert np.abs(expected["enhanced"] - low).max() > 0.05
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, atol=1e-4, err_msg=name)
    assert len(tiled._cover(704)) > 2
    np.testing.assert_array_equal(tiled(low), found["enhanced"].clip(0, 1))


def staged(**changes):
    method = Staged()
    return Enhancer(method, method.init(jax.random.key(1)), **changes)


def test_three_stages_equal_the_whole_picture():
    enhancer, low = staged(), picture(150, 203)
    expected, found = whole(enhancer, low), enhancer.explain(low)
    assert {stage for stage, *_ in enhancer._compiled} == {"condense", "solve", "apply"}
    assert len(enhancer._compiled) == 4  # the costly map has its own
    np.testing.assert_allclose(found["enhanced"], expected["enhanced"][:150, :203], atol=2e-6)
    for name in ("half", "far", "frames"):
        np.testing.assert_allclose(found[name], expected[name][..., :75, :102, :], atol=2e-6)
    np.testing.assert_allclose(found["mean"], expected["mean"], atol=2e-6)
    np.testing.assert_array_equal(enhancer(low), found["enhanced"].clip(0, 1))
    enhanced, drawings = enhancer.draw(low)
    np.testing.assert_array_equal(enhanced, enhancer(low))
    np.testing.assert_array_equal(drawings["far"], images.to_uint(found["far"], np.uint8))
    small = picture(20, 30)
    before = enhancer.programs
    enhancer(small)
    assert enhancer.programs == before + 1  # at once


# ---- memory ----


def plans(enhancer, low, *limits):
    """What is chosen under each limit, as (tiles, workers, what it says it takes)."""
    found = []
    for limit in limits:
        enhancer._limit, enhancer._base = limit, 0
        padded = enhancer_lib._Padded(low, enhancer.method.margins)
        budget = enhancer_lib._Budget(enhancer, padded, lambda x: x, None)
        plan = budget.plan()
        shape = plan.rows[0].side, plan.columns[0].side
        found.append((len(plan.tiles()), plan.workers, budget._total(shape, plan.workers)))
        assert found[-1][-1] <= limit
    return found


@pytest.mark.parametrize("make", [local, staged])
def test_tiles_and_workers_follow_the_limit(make, monkeypatch):
    monkeypatch.setattr(enhancer_lib, "_cores", lambda: 4)
    enhancer, low = make(), picture(303, 410)
    expected = enhancer(low)
    free = enhancer._plan(enhancer_lib._Padded(low, enhancer.method.margins), None, None)
    enhancer._limit, enhancer._base = 1, 0
    with pytest.raises(InputError, match="410 x 303 px takes [0-9,]+M .* the limit is 1M; raise"):
        enhancer(low)
    roomy, = plans(enhancer, low, 2 ** 40)
    assert roomy[:2] == (len(free.tiles()), free.workers) and free.workers == 4
    tight, = plans(enhancer, low, roomy[2] - 1)
    assert tight[1] < 4 or tight[0] > roomy[0]
    budget = enhancer_lib._Budget(enhancer, enhancer_lib._Padded(low, enhancer.method.margins),
                                  lambda x: x, None)
    budget.plan()
    enhancer._base = 0  # it knows what compiling took
    least = budget._total(min(budget._measured, key=math.prod), 1)
    (tiles, workers, size), = plans(enhancer, low, least)
    assert tiles >= roomy[0] and size < roomy[2]
    assert workers == 1 or enhancer.method.staged  # what sees the whole copy may take most
    enhancer._limit = least
    np.testing.assert_allclose(enhancer(low), expected, atol=2e-6)
    with pytest.raises(InputError):
        plans(enhancer, low, least - 1)


def test_what_sees_everything_fits_or_not():
    enhancer, low = Enhancer(Seeing(), {"gain": {"params": 2.0}}, max_memory=2 ** 40), picture(9, 9)
    np.testing.assert_array_equal(enhancer(low), Enhancer(Seeing(), enhancer._nets)(low))
    assert enhancer._base > 50e6  # Python and JAX
    with pytest.raises(InputError, match="9 x 9 px takes .* the limit is 1M"):
        Enhancer(Seeing(), enhancer._nets, max_memory=2 ** 20)(low)


def test_the_command_takes_a_limit(tmp_path, capsys):
    config = tiny("zerodce")[0].config
    model = str(tmp_path / "model.safetensors")
    weights.save(model, config, tiny("zerodce")[1], {"licence": "none"})
    for name in "ab":
        Image.fromarray((255 * picture(90, 70)).astype(np.uint8)).save(tmp_path / f"{name}.png")

    def run(size, out):
        return cli.main(["lljax", "enhance", str(tmp_path / "a.png"), str(tmp_path / "b.png"),
                         "-o", str(tmp_path / out), "--model", model, "--max-memory", size])

    assert run("1.5M", "none") == 1
    assert capsys.readouterr().err.count("the limit is 2M; raise it") == 2
    assert run("100G", "some") == 0
    expected = lljax.load(model)(np.asarray(Image.open(tmp_path / "a.png")))
    for name in "ab":
        np.testing.assert_array_equal(Image.open(tmp_path / f"some/{name}.png"), expected)
    for wrong in ("2", "G", "0G", "2 cows", "nanG", "infG"):
        with pytest.raises(InputError, match="write e.g. 2G or 800M"):
            run(wrong, "none")


# ---- what goes in comes out ----


def test_integers_are_the_rounded_floats():
    enhancer = local()
    low_u8 = np.random.default_rng(0).integers(0, 256, (70, 90, 3)).astype(np.uint8)
    expected = enhancer(low_u8 / np.float32(255))
    np.testing.assert_array_equal(enhancer(low_u8), np.rint(expected * np.float32(255)))
    deep = enhancer(low_u8.astype(np.uint16) * 257)
    assert deep.dtype == np.uint16
    np.testing.assert_allclose(deep / 65535, expected, atol=1e-5)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float16, np.float32, np.float64])
def test_type_and_size_stay(dtype):
    enhancer = local()
    low = (picture(20, 30) * (1 if np.issubdtype(dtype, np.floating) else 255)).astype(dtype)
    result = enhancer(low)
    assert type(result) is np.ndarray and (result.dtype, result.shape) == (dtype, low.shape)
    assert result.max() > 0 and not np.shares_memory(result, low)


def test_jax_arrays_come_back_as_such():
    result = local()(jnp.asarray(picture(9, 8)))
    assert isinstance(result, jax.Array) and result.dtype == jnp.float32


@pytest.mark.parametrize("make", [local, lambda: Enhancer(Seeing(), {"gain": {"params": 2.0}})])
def test_a_picture_of_a_batch_is_the_picture_alone(make):
    enhancer = make()
    batch = np.stack([picture(21, 34, seed) for seed in range(3)])
    result = enhancer(batch)
    assert result.shape == batch.shape
    for one, alone in zip(result, batch, strict=True):
        np.testing.assert_array_equal(one, enhancer(alone))


def test_pil_images_keep_mode_size_and_alpha():
    enhancer = local()
    low = Image.fromarray((picture(20, 31) * 255).astype(np.uint8))
    np.testing.assert_array_equal(np.asarray(enhancer(low)), enhancer(np.asarray(low)))
    for mode, result in (("L", "L"), ("LA", "LA"), ("RGBA", "RGBA"), ("P", "RGB"),
                         ("CMYK", "RGB"), ("1", "L")):
        image = low.convert(mode)
        if "A" in mode:
            image.putalpha(77)
        enhanced = enhancer(image)
        assert (enhanced.mode, enhanced.size) == (result, (31, 20))
        if "A" in mode:
            assert enhanced.getextrema()[-1] == (77, 77)


def test_a_method_that_sees_everything_is_padded_and_cropped():
    enhancer = Enhancer(Seeing(), {"gain": {"params": 2.0}})
    low = picture(13, 18)
    padded = np.pad(low, ((0, 3), (0, 2), (0, 0)), "reflect")
    found = enhancer.explain(low)
    noise = np.asarray(jax.random.normal(jax.random.key(0), (1, 4, 5, 3)))[0]
    expected = 2 * padded + padded.mean((0, 1)) + 0.1 * noise.repeat(4, 0).repeat(4, 1)
    np.testing.assert_allclose(found["enhanced"], expected[:13, :18], atol=1e-6)
    np.testing.assert_allclose(found["mean"], padded.mean((0, 1)), atol=1e-6)
    assert found["noise"].shape == (4, 5, 3)
    other = Enhancer(Seeing(), {"gain": {"params": 2.0}}, seed=1)
    assert np.abs(other(low) - enhancer(low)).max() > 0.05
    np.testing.assert_array_equal(enhancer(low), enhancer(low))


@pytest.mark.parametrize("image, match", [
    (np.zeros((4, 4)), "shape"), (np.zeros((4, 4, 4)), "shape"), (np.zeros((0, 4, 3)), "shape"),
    (np.zeros((4, 4, 3), np.int32), "dtype int32"), (np.full((4, 4, 3), 255.0), "from 255 to 255"),
    (np.full((4, 4, 3), np.nan), "nan")])
def test_what_is_no_picture_is_refused(image, match):
    with pytest.raises(InputError, match=match):
        local()(image)


def test_a_call_and_explain_agree_bit_for_bit():
    enhancer = local()
    low_u8 = np.random.default_rng(0).integers(0, 256, (150, 131, 3)).astype(np.uint8)
    for low in (low_u8, low_u8 * np.uint16(257), low_u8 / np.float32(255), low_u8 / 255):
        found = enhancer_lib.finish(enhancer.explain(low)["enhanced"], low.dtype)
        assert found.dtype == low.dtype
        np.testing.assert_array_equal(found, enhancer(low))
    assert enhancer.programs == 1


def test_pictures_of_the_maps():
    """By default those of one or three channels; the names are known beforehand."""
    enhancer = Enhancer(Seeing(), {"gain": {"params": 2.0}})
    maps = enhancer.explain(picture(21, 34))
    maps |= {"one": maps["noise"][..., :1], "many": maps["noise"].repeat(2, -1)}
    drawn = enhancer.method.draw(maps)
    assert set(drawn) == {"noise", "enhanced", "one"}
    np.testing.assert_array_equal(drawn["noise"], maps["noise"].clip(0, 1))
    assert enhancer.drawn() == ["noise"] and local(4).drawn() == ["small"]
    eight = {name: images.to_uint(value, np.uint8) for name, value in drawn.items()}
    assert images.drawing(eight["noise"]).pixels.shape == (6, 9, 3)
    grey = images.to_pil(images.drawing(eight["one"]))
    assert grey.mode == "L" and grey.size == (9, 6)
    np.testing.assert_array_equal(np.asarray(grey), eight["one"][..., 0])


def test_drawn_in_tiles_equals_drawn_whole():
    """And the picture is that of a call, whatever its depth."""
    enhancer = local(4)
    for low in (picture(300, 411), picture(300, 411).astype(np.uint16) * 257):
        enhanced, drawings = enhancer.draw(low)
        np.testing.assert_array_equal(enhanced, enhancer(low))
        maps = enhancer.explain(low)
        maps.pop("enhanced")
        for name, value in enhancer.method.draw(maps).items():
            assert drawings[name].dtype == np.uint8
            np.testing.assert_array_equal(drawings[name], images.to_uint(value, np.uint8))
        assert sorted(drawings) == enhancer.drawn()


def test_a_strip_is_kept_whole():
    """What is drawn of several maps is wider than the picture; in tiles or not."""
    enhancer = local(4)
    enhancer.method.draw = lambda maps: {"strip": np.concatenate([maps["small"]] * 3, 1)}
    low = picture(33, 50)
    small = enhancer.explain(low)["small"]
    drawn = enhancer.draw(low)[1]["strip"]
    assert drawn.shape == (9, 39, 3)
    np.testing.assert_array_equal(
        drawn, images.to_uint(np.concatenate([small] * 3, 1), np.uint8))


def test_explain_takes_one_picture():
    with pytest.raises(InputError, match="one picture"):
        local().explain(np.zeros((2, 4, 4, 3), np.uint8))


def test_load_from_a_file_and_unknown_names(tmp_path):
    config = config_lib.default("zerodce", "smoke")
    method = method_lib.load(config)
    nets = method.init(jax.random.key(0), {"low": np.zeros((1, 8, 8, 3), np.float32)})
    weights.save(tmp_path / "a.safetensors", config, nets, {})
    low = picture(12, 9)
    np.testing.assert_array_equal(lljax.load(tmp_path / "a.safetensors")(low),
                                  Enhancer(method, nets)(low))
    with pytest.raises(InputError, match="zerodcf.*Known.*workdir.*safetensors"):
        lljax.load("zerodcf")
