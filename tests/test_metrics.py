"""Metrics against values from named programs, and what they refuse."""

import json
import math
import pathlib

import dm_pix
import numpy as np
import pytest
import scipy.signal
import skimage.color
from PIL import Image
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from lljax.errors import InputError
from lljax.evaluation import device_ssim, metrics
from lljax.evaluation.evaluate import main
from lljax.evaluation.metrics import METRICS, PROTOCOLS, Files, cards, choose, described

CARDS = cards()


def golden_pair():
    """A synthetic pair whose scores were computed once with scikit-image and BasicSR."""
    y, x = np.mgrid[0:64, 0:96]
    reference = np.stack([np.round(127.5 + 100 * np.sin(x / 7) * np.cos(y / 5 + c))
                          for c in range(3)], -1).astype(np.uint8)
    enhanced = np.clip(np.round(reference * 0.7 + 4 * ((x + 2 * y) % 3)[..., None]
                                + np.array([6, 0, -4])), 0, 255).astype(np.uint8)
    assert int(reference.sum()) == 2350609 and int(enhanced.sum()) == 1731443
    return enhanced, reference


def skimage_ssim(enhanced, reference, channel_axis=2):
    return structural_similarity(
        enhanced, reference, gaussian_weights=True, sigma=1.5, use_sample_covariance=False,
        channel_axis=channel_axis, data_range=255)


def skimage_psnr(enhanced, reference):
    with np.errstate(divide="ignore"):  # where pictures are equal
        return peak_signal_noise_ratio(reference, enhanced, data_range=255)


def grey(picture):
    return np.floor(picture @ [0.299, 0.587, 0.114] + 0.5)


def luma(picture):
    return skimage.color.rgb2ycbcr(picture / 255)[..., 0]


def angle(enhanced, reference):
    # a black picture counts as grey
    a, b = (p.mean((0, 1)) if p.any() else np.ones(3) for p in (enhanced, reference))
    cosine = a @ b / np.linalg.norm(a) / np.linalg.norm(b)
    return math.degrees(math.acos(min(cosine, 1)))


def order_error(enhanced, reference):
    a, b = (p.max(2).ravel() for p in (darker(reference), enhanced))
    return np.mean([((a >= a[i]) != (b >= b[i])).sum() for i in range(a.size)])


def immerkaer(enhanced, reference):
    mask = np.outer([1, -2, 1], [1, -2, 1])
    filtered = [scipy.signal.convolve2d(enhanced[..., c].astype(float), mask, mode="valid")
                for c in range(3)]
    return np.mean(np.abs(filtered)) * math.sqrt(math.pi / 2) / 6


# The programs that the cards name, on float64 pictures. Those of metrics that need files are in
# test_lpips.py and test_blind.py; of BasicSR, here its formulas, below the recorded values.
PROGRAMS = {
    "psnr": skimage_psnr, "ssim": skimage_ssim, "mae": lambda a, b: np.mean(np.abs(a - b)),
    "psnr_y": lambda a, b: skimage_psnr(luma(a), luma(b)),
    "ssim_y": lambda a, b: skimage_ssim(luma(a), luma(b), None),
    "ssim_grey": lambda a, b: skimage_ssim(grey(a), grey(b), None),
    "brightness": lambda a, b: (a @ [0.299, 0.587, 0.114]).mean() / (
        b @ [0.299, 0.587, 0.114]).mean(),
    "cast": angle, "loe": order_error, "noise": immerkaer}


def pictures(kind, shape=(43, 61, 3)):
    """Two uint8 pictures that are hard in one way each."""
    rng = np.random.default_rng(5)
    y, x = np.mgrid[:shape[0], :shape[1]]
    smooth = (127.5 + 100 * np.sin(x / 17) * np.cos(y / 11))[..., None] + np.array([0, 9, -9])
    return {
        "random": (rng.integers(0, 256, shape), rng.integers(0, 256, shape)),
        "smooth": (smooth * 0.7, smooth),
        "smooth and noise": ((smooth * 0.7 + rng.normal(0, 6, shape)).clip(0, 255), smooth),
        "flat": (np.full(shape, 251), np.full(shape, 255)),
        "flat and bright": (250 + rng.integers(-1, 2, shape), np.full(shape, 250)),
        "black": (np.zeros(shape), rng.integers(0, 2, shape)),
    }[kind]


KINDS = ("random", "smooth", "smooth and noise", "flat", "flat and bright", "black")


@pytest.fixture(params=KINDS)
def pair(request):
    return [picture.astype(np.uint8) for picture in pictures(request.param)]


def darker(reference):
    """What the input is where it counts."""
    return (reference // 3).astype(np.uint8)


def score(card, enhanced, reference):
    return card.function(enhanced, reference, darker(reference))


def within(card, expected):
    return pytest.approx(expected, rel=0, abs=card.tolerance)


@pytest.mark.parametrize("key", [key for key in CARDS if key != "loe"])
def test_a_metric_equals_the_program_its_card_names(key, pair):
    enhanced, reference = pair
    compared = enhanced.astype(float)
    if CARDS[key].gt_mean:
        compared = metrics.gt_mean(enhanced, reference)
    expected = PROGRAMS[key.removesuffix("_gtm")](compared, reference.astype(float))
    assert score(CARDS[key], *pair) == within(CARDS[key], expected)


def test_loe_equals_all_pairs_of_pixels():
    pair = [picture[:19, :23] for picture in golden_pair()]
    assert score(CARDS["loe"], *pair) == within(CARDS["loe"], PROGRAMS["loe"](*pair)) != 0


def test_a_card_without_references_is_tested_too():
    card, enhanced = cards(references=False)["cast"], golden_pair()[0]
    assert card.function(enhanced, None, enhanced) == within(card, angle(enhanced,
                                                                       np.ones((1, 1, 3))))


@pytest.mark.parametrize("protocol, key, expected", [
    ("lljax", "psnr", 16.754946), ("lljax", "ssim", 0.883126), ("lljax", "psnr_gtm", 30.441784),
    ("lljax", "psnr_y", 18.511326), ("lljax", "ssim_y", 0.896286),
    ("lljax", "ssim_grey", 0.880581), ("retinexformer", "psnr", 16.754946),
    ("retinexformer", "ssim", 0.883126), ("retinexformer", "psnr_gtm", 30.472537),
    ("skimage-default", "ssim", 0.888270), ("skimage-default", "psnr_gtm", 30.441784),
    ("llflow", "psnr", 16.754946)])
def test_golden_pair(protocol, key, expected):
    assert score(cards(protocol)[key], *golden_pair()) == pytest.approx(expected, abs=1e-6)


def test_protocols_say_what_they_do():
    made = {name: cards(name) for name in PROTOCOLS}
    for key in CARDS:
        strings = {name: made[name][key].protocol for name in PROTOCOLS}
        values = {name: score(made[name][key], *golden_pair()) for name in PROTOCOLS}
        for name in PROTOCOLS:  # another computation has another string, and the other way round
            same = strings[name] == strings["lljax"]
            if key != "ssim_gtm" or name != "retinexformer":
                assert same == (values[name] == pytest.approx(values["lljax"], abs=1e-9)), key
        if not (key.endswith("_gtm") or key == "ssim"):
            assert len(set(strings.values())) == 1


def test_skimage_default_is_skimage_s(pair):
    card = cards("skimage-default")["ssim"]
    expected = structural_similarity(*pair, channel_axis=2, data_range=255)
    assert score(card, *pair) == pytest.approx(expected, rel=0, abs=1e-12)


def test_llflow_is_llflow_s_computation(pair):
    # its program: grey rounded to 8 bits, whose columns scikit-image takes for channels; the output
    # scaled by its mean over R, G, B to the reference's grey with red and blue swapped, truncated
    enhanced, reference = pair

    def ssim(a, b):
        return structural_similarity(grey(a), grey(b), channel_axis=1, data_range=255)

    llflow = cards("llflow")
    assert score(llflow["ssim"], *pair) == pytest.approx(ssim(*pair), rel=0, abs=1e-12)
    target = (reference @ [0.114, 0.587, 0.299]).mean()
    scaled = np.clip(enhanced * (target / max(enhanced.mean(), 1e-12)), 0, 255).astype(np.uint8)
    for key, expected in (("psnr_gtm", skimage_psnr(scaled, reference)),
                          ("ssim_gtm", ssim(scaled, reference))):
        assert score(llflow[key], *pair) == within(llflow[key], expected)


def test_retinexformer_rounds_for_ssim_alone(pair):
    enhanced, reference = pair
    weights = [0.114, 0.587, 0.299]
    ratio = (reference @ weights).mean() / max((enhanced @ weights).mean(), 1e-12)
    scaled = np.clip(enhanced * ratio, 0, 255)
    made = cards("retinexformer")
    for key, expected in (
            ("psnr_gtm", skimage_psnr(scaled, reference.astype(float))),
            ("ssim_gtm", skimage_ssim(np.rint(scaled).astype(np.uint8), reference))):
        assert score(made[key], *pair) == within(made[key], expected)


@pytest.mark.parametrize("height, width", [(11, 11), (11, 40), (67, 13), (128, 96)])
def test_ssim_equals_skimage_at_any_size(height, width):
    enhanced, reference = (p.astype(np.uint8) for p in pictures("random", (height, width, 3)))
    assert metrics.ssim(enhanced, reference) == within(METRICS["ssim"],
                                                       skimage_ssim(enhanced, reference))


def test_ssim_is_the_same_on_every_device(pair, monkeypatch):
    """Where the device has no float64 the host computes it."""
    expected = pytest.approx(skimage_ssim(*pair), rel=0, abs=1e-12)
    with monkeypatch.context() as patched:
        patched.setattr(metrics, "_ssim_on_host", None)
        assert metrics.ssim(*pair) == expected
    monkeypatch.setattr(device_ssim, "has_float64", lambda: False)
    monkeypatch.setattr(device_ssim, "ssim", None)
    assert metrics.ssim(*pair) == expected


def test_ssim_in_float32_would_be_wrong():
    """Which is why the device computes it in float64."""
    pair = [p.astype(np.uint8) for p in pictures("flat and bright")]
    other = dm_pix.ssim(*(np.float32(picture / 255) for picture in pair))
    assert 1e-5 < abs(float(other) - metrics.ssim(*pair)) < 1e-3


@pytest.mark.parametrize("sides", [(266, 267), (300, 11), (522, 530)])
def test_ssim_of_a_picture_cut_in_blocks(sides):
    # 256 and 257 windows, 290 and 1, 512 and 520: one block, two and three along a side
    pair = [p.astype(np.uint8) for p in pictures("smooth and noise", (*sides, 3))]
    assert metrics.ssim(*pair) == pytest.approx(skimage_ssim(*pair), rel=0, abs=1e-12)


def test_pictures_of_all_sizes_share_programs():
    def lengths(counts):
        return {length for count in counts for _, length in device_ssim._cuts(count)}

    assert lengths(range(1, 6000)) == set(range(32, 257, 32))
    assert lengths(range(341, 6000)) == {192, 224, 256}
    for count in (1, 32, 33, 256, 257, 512, 513, 4000):
        cuts = device_ssim._cuts(count)
        assert [start for start, _ in cuts] == [i * cuts[0][1] for i in range(len(cuts))]
        assert cuts[-1][0] < count <= sum(cuts[-1])
    device_ssim._sum.clear_cache()
    for sides in ((11, 20), (42, 33), (15, 42)):
        metrics.ssim(*[p.astype(np.uint8) for p in pictures("random", (*sides, 3))])
    assert device_ssim._sum._cache_size() == 1


def test_mae_by_hand():
    enhanced = np.zeros((2, 2, 3), np.uint8)
    reference = enhanced.copy()
    reference[0, 0] = (12, 0, 24)  # unsigned: 0 - 12 must not wrap
    assert metrics.mae(enhanced, reference) == 3.0
    assert metrics.mae(reference, enhanced) == 3.0


def test_gt_mean_takes_the_reference_s_grey():
    enhanced = np.full((4, 4, 3), (10, 20, 30), np.uint8)
    reference = np.full((4, 4, 3), (40, 50, 60), np.uint8)
    ratio = (0.299 * 40 + 0.587 * 50 + 0.114 * 60) / (0.299 * 10 + 0.587 * 20 + 0.114 * 30)
    scaled = metrics.gt_mean(enhanced, reference)
    np.testing.assert_allclose(scaled[0, 0], ratio * np.array([10, 20, 30]), rtol=1e-12)
    assert score(METRICS["mae_gtm"], enhanced, reference) == pytest.approx(
        np.abs(ratio * np.array([10, 20, 30]) - [40, 50, 60]).mean(), rel=1e-12)


def test_gt_mean_clips():
    enhanced = np.zeros((20, 20, 3), np.uint8)
    enhanced[:5] = 200
    reference = np.full((20, 20, 3), 200, np.uint8)
    assert metrics.gt_mean(enhanced, reference).max() == 255


def test_gt_mean_of_a_black_output_is_black():
    black, reference = np.zeros((12, 12, 3), np.uint8), np.full((12, 12, 3), 90, np.uint8)
    for key in ("psnr", "ssim", "mae"):
        for protocol in PROTOCOLS:
            made = cards(protocol)
            assert score(made[f"{key}_gtm"], black, reference) == score(
                made[key], black, reference)


@pytest.mark.parametrize("kind", KINDS)
def test_equal_pictures(kind):
    picture = pictures(kind)[1].astype(np.uint8)
    expected = {"psnr": math.inf, "ssim": 1.0, "mae": 0.0, "psnr_y": math.inf, "ssim_y": 1.0,
                "ssim_grey": 1.0}
    for key, value in expected.items():
        assert score(CARDS[key], picture, picture.copy()) == pytest.approx(value, abs=1e-12)
        assert score(CARDS[f"{key}_gtm"], picture, picture.copy()) == pytest.approx(
            value, abs=1e-12)
    assert score(CARDS["brightness"], picture, picture.copy()) == 1
    assert score(CARDS["cast"], picture, picture.copy()) == pytest.approx(0, abs=1e-6)
    assert CARDS["loe"].function(picture, None, picture.copy()) == 0


def test_values_stay_in_the_card_s_range(pair):
    for card in CARDS.values():
        low, high = card.range
        assert low <= score(card, *pair) <= high, card.key


def test_better_points_the_right_way():
    reference = golden_pair()[1]
    rng = np.random.default_rng(0)
    near, far = (np.clip(reference + rng.normal(0, sd, reference.shape), 0, 255).astype(np.uint8)
                 for sd in (3, 30))
    far = np.clip(far * [0.9, 1, 1.1], 0, 255).astype(np.uint8)  # noise alone casts no colour
    for card in CARDS.values():
        values = np.array([score(card, near, reference), score(card, far, reference)])
        gain = values[0] - values[1]
        assert (gain > 0) == (card.better == "up") or card.better == "one", card.key
        assert np.diff(card.merit(values)) < 0, card.key


def test_a_score_is_the_same_from_any_memory_layout():
    enhanced, reference = golden_pair()
    strided = np.repeat(enhanced, 2, axis=0)[::2]
    for card in CARDS.values():
        assert score(card, strided, np.asfortranarray(reference)) == pytest.approx(
            score(card, enhanced, reference), rel=1e-12)


@pytest.mark.parametrize("card", CARDS.values(), ids=CARDS)
def test_what_is_refused(card):
    good = np.zeros((20, 30, 3), np.uint8)

    def refuses(match, enhanced, other):
        with pytest.raises(InputError, match=match):
            card.function(enhanced, other, other)

    refuses("30x20.*30x21.*never resize", good, np.zeros((21, 30, 3), np.uint8))
    refuses("30x20.*20x30", good, good.transpose(1, 0, 2))
    refuses("float32.*uint8", good.astype(np.float32), good)
    refuses("(reference|low) picture is int64", good, good.astype(np.int64))
    refuses(r"\(20, 30\).*RGB", good[..., 0], good[..., 0])
    refuses(r"\(20, 30, 1\)", good[..., :1], good[..., :1])
    refuses("30x0.*at least", good[:0], good[:0])
    refuses("uint8", good.tolist(), good)


SMALLEST = {"noise": (3, 3), **{f"{key}{end}": (11, 11) for key in ("ssim", "ssim_y", "ssim_grey")
                                for end in ("", "_gtm")}}


@pytest.mark.parametrize("key", CARDS)
def test_a_picture_may_be_as_small_as_the_card_says(key):
    card, (short, long) = CARDS[key], SMALLEST.get(key, (1, 1))
    assert card.min_size == (short, long)
    rng = np.random.default_rng(0)
    for shape in ((short, long, 3), (long, short, 3), (short, 40, 3)):
        pair = rng.integers(1, 256, (2, *shape)).astype(np.uint8)
        assert not math.isnan(score(card, *pair))
        for pixels in (0, 128):  # no texture, no colour
            flat = np.full(shape, pixels, np.uint8)
            assert not math.isnan(score(card, flat, pair[1]))
            assert not math.isnan(score(card, pair[0], flat))
    for small in ((short - 1, 40, 3), (40, short - 1, 3)):
        black = np.zeros(small, np.uint8)
        with pytest.raises(InputError) as caught:
            score(card, black, black)
        assert str(caught.value) == (f"the picture is {small[1]}x{small[0]} (width x height); "
                                     f"{card.title} needs at least {short} px a side")


def test_llflow_s_ssim_needs_its_own_window():
    for name, side in (("llflow", 7), ("skimage-default", 7), ("retinexformer", 11)):
        card = cards(name)["ssim"]
        black = np.zeros((side, 40, 3), np.uint8)
        assert score(card, black, black) == pytest.approx(1, abs=1e-12)
        with pytest.raises(InputError, match=f"40x{side - 1}.*SSIM needs at least {side} px"):
            score(card, black[1:], black[1:])


@pytest.fixture
def folders(tmp_path, monkeypatch):
    """Two pictures, one of them too small for SSIM and for nothing else."""
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    for name, shape in (("large.png", (24, 30, 3)), ("small.png", (10, 30, 3))):
        for folder, high in (("low", 60), ("high", 256)):
            (tmp_path / folder).mkdir(exist_ok=True)
            picture = rng.integers(0, high, shape).astype(np.uint8)
            Image.fromarray(picture).save(tmp_path / folder / name)
    return ["evaluate.py", "--low", "low", "--high", "high", "--baselines", "identity,CLAHE",
            "--out", "out"]


def test_the_others_go_on_without_a_metric_outside_its_domain(folders, tmp_path, capsys):
    assert main([*folders, "--metrics", "psnr,ssim,loe"]) == 1
    out, err = capsys.readouterr()
    reason = ("too small for it: 1 of 2 pictures, e.g. small.png: the picture is 30x10 (width x "
              "height); SSIM needs at least 11 px a side")
    assert err == f"error: left out: ssim: {reason}\n"
    assert f"ssim is not computed: {reason}" in out and "PSNR" in out
    saved = json.loads((tmp_path / "out" / "results.json").read_text())
    assert saved["not_computed"] == {"ssim": reason} and list(saved["metrics"]) == ["psnr", "loe"]
    assert saved["systems"]["CLAHE"]["psnr"]["n"] == 2
    assert saved["metrics"]["psnr"]["tolerance"] == CARDS["psnr"].tolerance
    assert main([*folders, "--metrics", "psnr,ssim", "--limit", "1"]) == 0  # the large one alone
    capsys.readouterr()


def test_nothing_goes_on_where_no_metric_is_left(folders, tmp_path):
    message = "1 of 2 pairs cannot be scored.*small.png.*SSIM needs"
    with pytest.raises(InputError, match=message) as caught:
        main([*folders, "--metrics", "ssim,ssim_y"])
    assert "\n" not in str(caught.value) and not (tmp_path / "out").exists()


def test_cards_are_complete_and_told_apart():
    protocols = [card.protocol for card in CARDS.values()]
    assert len(set(protocols)) == len(CARDS)
    assert METRICS["ssim"].protocol == "ssim[rgb,g11,s1.5,valid,u8]"
    assert set(PROGRAMS) == {key.removesuffix("_gtm") for key in CARDS}
    for card in described().values():
        assert card.what and card.colour_space and card.reference_program
        assert 0 < card.tolerance <= 1e-3 and card.range[0] < card.range[1]
        assert json.loads(json.dumps(card.card(), allow_nan=False))["what"] == card.what
    assert CARDS["psnr"].card()["range"] == [0, "inf"]
    for key, card in CARDS.items():
        assert key == card.key and card.better in ("up", "down", "one")
        assert card.gt_mean == key.endswith("_gtm") == ("gtmean" in card.protocol)
        assert bool(card.infinite) == (card.unit == "dB" or key == "brightness")


def keys(*args, **kwargs):
    return [card.key for card in choose(*args, **kwargs)[0]]


def test_what_is_computed_is_what_was_asked_for():
    default = ["psnr", "ssim", "mae", "psnr_gtm", "ssim_gtm", "mae_gtm"]
    assert keys() == list(METRICS) == default
    assert keys(["loe", "default", "psnr"]) == ["loe", *default]
    assert keys(["ssim_grey"], "llflow") == ["ssim_grey"]
    assert keys(references=False) == ["loe", "cast", "noise"]
    chosen, left_out = choose(["all"])
    assert [card.key for card in chosen] == list(CARDS)
    assert set(left_out) == {"lpips_alex", "lpips_vgg", "niqe", "brisque"}
    assert "--lpips-alex ALEXNET HEADS" in left_out["lpips_alex"]
    assert choose()[1] == left_out and choose(["psnr"])[1] == {}
    assert set(choose(references=False)[1]) == {"niqe", "brisque"}
    assert all(card.needs != "reference" for card in choose(["all"], references=False)[0])
    assert set(metrics.KNOWN) == {*CARDS, *left_out, "lpips_alex_gtm", "lpips_vgg_gtm"}


@pytest.mark.parametrize("asked, options, message", [
    (["psrn"], {}, 'Did you mean "psnr"'), (["niqe"], {}, "metric niqe: .*--niqe FILE"),
    (["lpips_vgg_gtm"], {}, "--lpips-vgg VGG16 HEADS"),
    (["loe", "psnr"], {"references": False}, "metric psnr: it compares with references.*loe"),
    (["lpips_alex"], {"references": False}, "metric lpips_alex: it compares with references"),
    ([], {"protocol": "lflow"}, 'unknown protocol "lflow". Did you mean "llflow"'),
    ([], {"files": Files(niqe="no/such.npz")}, "no file 'no/such.npz'")])
def test_what_cannot_be_computed_is_said(asked, options, message):
    with pytest.raises(InputError, match=message):
        choose(asked, **options)


def test_recorded_values_of_basicsr(shared):
    recorded = np.load(shared / "reference" / "metrics_psnr_ssim.npz")
    a, b = recorded["crop_a_uint8"], recorded["crop_b_uint8"]
    inner = a[4:-4, 4:-4], b[4:-4, 4:-4]
    for key, name, pair in (
            ("psnr", "crop_psnr_rgb", (a, b)), ("ssim", "crop_ssim_rgb", (a, b)),
            ("psnr", "crop_psnr_rgb_border4", inner), ("ssim", "crop_ssim_rgb_border4", inner),
            ("psnr_y", "crop_psnr_y", (a, b)), ("ssim_y", "crop_ssim_y", (a, b))):
        assert score(CARDS[key], *pair) == within(CARDS[key], float(recorded[name])), name
    assert metrics.psnr(a, a) == float(recorded["psnr_identical"]) == math.inf


def test_recorded_values_of_basicsr_on_whole_pictures(shared):
    recorded = np.load(shared / "reference" / "metrics_psnr_ssim.npz")
    scored = 0
    for i, names in enumerate(recorded["pairs"]):
        paths = [shared / name for name in str(names).split("|")]
        if not all(path.exists() for path in paths):
            continue
        pair = [np.asarray(Image.open(path).convert("RGB")) for path in paths]
        for key, name in (("psnr", "psnr_rgb"), ("ssim", "ssim_rgb"), ("psnr_y", "psnr_y"),
                          ("ssim_y", "ssim_y")):
            assert score(CARDS[key], *pair) == within(CARDS[key], float(recorded[name][i])), name
        scored += 1
    if not scored:
        pytest.skip("the pictures of the recorded pairs are not here")


PAGE = pathlib.Path(__file__).parents[1] / "docs" / "metrics.md"


def test_the_docs_table_is_that_of_the_cards():
    page = PAGE.read_text()
    assert metrics.table() in page, "copy what `python evaluate.py --list-metrics` prints"
    for name, protocol in PROTOCOLS.items():
        assert f"| `{name}`" in page and f"`{protocol.gt_mean_tag}`" in page
        assert f"`{cards(name)['ssim'].protocol}`" in page


def test_the_command_prints_every_card(capsys):
    assert main(["evaluate.py", "--list-metrics", "--protocol", "llflow"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len({line.count("|") for line in lines}) == 1
    rows = [line.strip("| ").split(" | ") for line in lines]
    assert rows[0][0] == "metric" and rows[0][4:8] == [
        "range", "colour space", "reference program", "tolerance"]
    text = "\n".join(lines)
    for card in [*described("llflow").values(), *described("llflow", references=False).values()]:
        assert f"`{card.key}`" in text and (card.gt_mean or f"`{card.protocol}`" in text)
    ssim = next(row for row in rows if row[0] == "`ssim`")
    assert ssim[1:] == [
        "SSIM: structural similarity, windows of 7 px down each column", "reference", "up",
        "-1 to 1", "grey, BT.601, rounded", "scikit-image structural_similarity, of a grey picture "
        "with channel_axis=1, data_range=255", "1e-06", "7", "`ssim[grey,u7x1,sample,valid,u8]`"]
    niqe = next(row for row in rows if row[0] == "`niqe`")
    assert "needs --niqe FILE" in niqe[1] and niqe[2] == "nothing" and niqe[8] == "96 and 192"
    with pytest.raises(InputError, match='Did you mean "llflow"'):
        main(["evaluate.py", "--list-metrics", "--protocol", "lflow"])
