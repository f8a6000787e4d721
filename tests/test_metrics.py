"""Metrics against values from named programs, and what they refuse."""

import math
import pathlib

import dm_pix
import numpy as np
import pytest
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from lljax.errors import InputError
from lljax.evaluation import metrics
from lljax.evaluation.metrics import METRICS, PROTOCOLS, Files, cards, choose

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


def skimage_ssim(enhanced, reference):
    return structural_similarity(enhanced, reference, gaussian_weights=True, sigma=1.5,
                                 use_sample_covariance=False, channel_axis=2, data_range=255)


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


def score(card, enhanced, reference):
    """A metric of a pair; the input, where it counts, is the reference darkened."""
    return card.function(enhanced, reference, (reference // 3).astype(np.uint8)
                         if isinstance(reference, np.ndarray) else reference)


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


def test_ssim_of_grey_is_skimage_s(pair):
    grey = [np.floor(p @ [0.299, 0.587, 0.114] + 0.5).astype(np.uint8) for p in pair]
    expected = structural_similarity(*grey, gaussian_weights=True, sigma=1.5,
                                     use_sample_covariance=False, data_range=255)
    assert score(CARDS["ssim_grey"], *pair) == pytest.approx(expected, abs=1e-10)


def test_skimage_default_is_skimage_s(pair):
    expected = structural_similarity(*pair, channel_axis=2, data_range=255)
    assert score(cards("skimage-default")["ssim"], *pair) == pytest.approx(expected, abs=1e-10)


@pytest.mark.filterwarnings("ignore:divide by zero")  # scikit-image's, where pictures are equal
def test_llflow_is_llflow_s_computation(pair):
    # its program: grey rounded to 8 bits, whose columns scikit-image takes for channels; the output
    # scaled by its mean over R, G, B to the reference's grey with red and blue swapped, truncated
    enhanced, reference = pair

    def ssim(a, b):
        grey = [np.floor(p @ [0.299, 0.587, 0.114] + 0.5).astype(np.uint8) for p in (a, b)]
        return structural_similarity(*grey, channel_axis=1, data_range=255)

    llflow = cards("llflow")
    assert score(llflow["ssim"], *pair) == pytest.approx(ssim(*pair), abs=1e-10)
    target = (reference @ [0.114, 0.587, 0.299]).mean()
    scaled = np.clip(enhanced * (target / max(enhanced.mean(), 1e-12)), 0, 255).astype(np.uint8)
    expected = peak_signal_noise_ratio(reference, scaled, data_range=255)
    assert score(llflow["psnr_gtm"], *pair) == pytest.approx(expected, abs=1e-9)
    assert score(llflow["ssim_gtm"], *pair) == pytest.approx(ssim(scaled, reference), abs=1e-10)


@pytest.mark.filterwarnings("ignore:divide by zero")
def test_retinexformer_rounds_for_ssim_alone(pair):
    enhanced, reference = pair
    weights = [0.114, 0.587, 0.299]
    ratio = (reference @ weights).mean() / max((enhanced @ weights).mean(), 1e-12)
    scaled = np.clip(enhanced * ratio, 0, 255)
    made = cards("retinexformer")
    expected = peak_signal_noise_ratio(reference.astype(float), scaled, data_range=255)
    assert score(made["psnr_gtm"], *pair) == pytest.approx(expected, abs=1e-9)
    expected = skimage_ssim(np.rint(scaled).astype(np.uint8), reference)
    assert score(made["ssim_gtm"], *pair) == pytest.approx(expected, abs=1e-10)


def test_psnr_equals_skimage(pair):
    expected = peak_signal_noise_ratio(pair[1], pair[0], data_range=255)
    assert metrics.psnr(*pair) == pytest.approx(expected, abs=1e-9)


def test_ssim_equals_skimage(pair):
    assert metrics.ssim(*pair) == pytest.approx(skimage_ssim(*pair), abs=1e-10)


@pytest.mark.parametrize("height, width", [(11, 11), (11, 40), (67, 13), (128, 96)])
def test_ssim_equals_skimage_at_any_size(height, width):
    enhanced, reference = (p.astype(np.uint8) for p in pictures("random", (height, width, 3)))
    assert metrics.ssim(enhanced, reference) == pytest.approx(skimage_ssim(enhanced, reference),
                                                             abs=1e-10)


@pytest.mark.parametrize("kind", ["random", "smooth", "smooth and noise"])
def test_ssim_agrees_with_dm_pix(kind):
    # float32 there: no better than 1e-4 on flat bright pictures, which are left out here
    enhanced, reference = (p.astype(np.uint8) for p in pictures(kind))
    other = dm_pix.ssim(np.float32(enhanced / 255), np.float32(reference / 255))
    assert metrics.ssim(enhanced, reference) == pytest.approx(float(other), abs=2e-5)


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


@pytest.mark.parametrize("key", ["ssim", "ssim_gtm", "ssim_y", "ssim_grey"])
def test_ssim_needs_its_window(key):
    small = np.zeros((10, 400, 3), np.uint8)
    with pytest.raises(InputError, match="400x10.*SSIM.*11 px"):
        score(CARDS[key], small, small)
    assert score(METRICS["psnr"], small, small) == math.inf
    assert score(cards("llflow")["ssim"], small, small) == 1


def test_cards_are_complete_and_told_apart():
    protocols = [card.protocol for card in CARDS.values()]
    assert len(set(protocols)) == len(CARDS)
    assert METRICS["ssim"].protocol == "ssim[rgb,g11,s1.5,valid,u8]"
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
    assert choose()[1] == choose(["psnr"])[1] == {}
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
    assert metrics.psnr(a, b) == pytest.approx(float(recorded["crop_psnr_rgb"]), abs=1e-4)
    assert metrics.ssim(a, b) == pytest.approx(float(recorded["crop_ssim_rgb"]), abs=1e-5)
    a4, b4 = a[4:-4, 4:-4], b[4:-4, 4:-4]
    assert metrics.psnr(a4, b4) == pytest.approx(float(recorded["crop_psnr_rgb_border4"]), abs=1e-4)
    assert metrics.ssim(a4, b4) == pytest.approx(float(recorded["crop_ssim_rgb_border4"]), abs=1e-5)
    assert metrics.psnr(a, a) == float(recorded["psnr_identical"]) == math.inf
    assert score(CARDS["psnr_y"], a, b) == pytest.approx(float(recorded["crop_psnr_y"]), abs=1e-4)
    assert score(CARDS["ssim_y"], a, b) == pytest.approx(float(recorded["crop_ssim_y"]), abs=1e-5)


def test_recorded_values_of_basicsr_on_whole_pictures(shared):
    image = pytest.importorskip("PIL.Image")
    recorded = np.load(shared / "reference" / "metrics_psnr_ssim.npz")
    scored = 0
    for i, names in enumerate(recorded["pairs"]):
        paths = [shared / name for name in str(names).split("|")]
        if not all(path.exists() for path in paths):
            continue
        a, b = (np.asarray(image.open(path).convert("RGB")) for path in paths)
        assert metrics.psnr(a, b) == pytest.approx(float(recorded["psnr_rgb"][i]), abs=1e-4)
        assert metrics.ssim(a, b) == pytest.approx(float(recorded["ssim_rgb"][i]), abs=1e-5)
        scored += 1
    if not scored:
        pytest.skip("the pictures of the recorded pairs are not here")


def test_the_docs_have_every_card():
    page = (pathlib.Path(__file__).parents[1] / "docs" / "metrics.md").read_text()
    for name, protocol in PROTOCOLS.items():
        assert f"| `{name}`" in page and f"`{protocol.gt_mean_tag}`" in page
        assert f"`{cards(name)['ssim'].protocol}`" in page
    for card in [*CARDS.values(), *cards(references=False).values()]:
        assert card.gt_mean or f"`{card.protocol}`" in page, card.key
    for key in metrics.KNOWN:
        assert f"| `{key.removesuffix('_gtm')}` |" in page, key
