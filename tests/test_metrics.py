"""Metrics against values from named programs, and what they refuse."""

import math

import dm_pix
import numpy as np
import pytest
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from lljax.errors import InputError
from lljax.evaluation import metrics
from lljax.evaluation.baselines import BASELINES
from lljax.evaluation.metrics import METRICS


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


@pytest.mark.parametrize("key, expected, tolerance", [
    ("psnr", 16.754946, 1e-6), ("ssim", 0.883126, 1e-6), ("psnr_gtm", 30.441784, 1e-6)])
def test_golden_pair(key, expected, tolerance):
    assert METRICS[key].function(*golden_pair()) == pytest.approx(expected, abs=tolerance)


def test_golden_pair_is_not_another_protocol():
    # skimage's default window, grey SSIM, and gt-mean with swapped or equal channel weights
    enhanced, reference = golden_pair()
    assert abs(metrics.ssim(enhanced, reference) - 0.888270) > 1e-3
    assert abs(metrics.ssim(enhanced, reference) - 0.8806) > 1e-3
    for other in (30.472537, 30.578209, 30.577841):
        assert abs(metrics.psnr_gt_mean(enhanced, reference) - other) > 1e-2


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
    assert metrics.mae_gt_mean(enhanced, reference) == pytest.approx(
        np.abs(ratio * np.array([10, 20, 30]) - [40, 50, 60]).mean(), rel=1e-12)


def test_gt_mean_clips():
    enhanced = np.zeros((20, 20, 3), np.uint8)
    enhanced[:5] = 200
    reference = np.full((20, 20, 3), 200, np.uint8)
    assert metrics.gt_mean(enhanced, reference).max() == 255


def test_gt_mean_of_a_black_output_is_black():
    black, reference = np.zeros((12, 12, 3), np.uint8), np.full((12, 12, 3), 90, np.uint8)
    for key in ("psnr", "ssim", "mae"):
        assert METRICS[f"{key}_gtm"].function(black, reference) == METRICS[key].function(
            black, reference)


@pytest.mark.parametrize("kind", KINDS)
def test_equal_pictures(kind):
    picture = pictures(kind)[1].astype(np.uint8)
    expected = {"psnr": math.inf, "ssim": 1.0, "mae": 0.0}
    for key, value in expected.items():
        assert METRICS[key].function(picture, picture.copy()) == pytest.approx(value, abs=1e-12)
        assert METRICS[f"{key}_gtm"].function(picture, picture.copy()) == pytest.approx(
            value, abs=1e-12)


def test_values_stay_in_the_card_s_range(pair):
    for card in METRICS.values():
        low, high = card.range
        assert low <= card.function(*pair) <= high, card.key


def test_better_points_the_right_way():
    reference = golden_pair()[1]
    rng = np.random.default_rng(0)
    near, far = (np.clip(reference + rng.normal(0, sd, reference.shape), 0, 255).astype(np.uint8)
                 for sd in (3, 30))
    for card in METRICS.values():
        gain = card.function(near, reference) - card.function(far, reference)
        assert (gain > 0) == (card.better == "up"), card.key


def test_a_score_is_the_same_from_any_memory_layout():
    enhanced, reference = golden_pair()
    strided = np.repeat(enhanced, 2, axis=0)[::2]
    for card in METRICS.values():
        assert card.function(strided, np.asfortranarray(reference)) == pytest.approx(
            card.function(enhanced, reference), rel=1e-12)


@pytest.mark.parametrize("card", METRICS.values(), ids=METRICS)
def test_what_is_refused(card):
    good = np.zeros((20, 30, 3), np.uint8)
    with pytest.raises(InputError, match="30x20.*30x21.*never resize"):
        card.function(good, np.zeros((21, 30, 3), np.uint8))
    with pytest.raises(InputError, match="30x20.*20x30"):
        card.function(good, good.transpose(1, 0, 2))
    with pytest.raises(InputError, match="float32.*uint8"):
        card.function(good.astype(np.float32), good)
    with pytest.raises(InputError, match="reference picture is int64"):
        card.function(good, good.astype(np.int64))
    with pytest.raises(InputError, match=r"\(20, 30\).*RGB"):
        card.function(good[..., 0], good[..., 0])
    with pytest.raises(InputError, match=r"\(20, 30, 1\)"):
        card.function(good[..., :1], good[..., :1])
    with pytest.raises(InputError, match="30x0.*at least"):
        card.function(good[:0], good[:0])
    with pytest.raises(InputError, match="uint8"):
        card.function(good.tolist(), good)


@pytest.mark.parametrize("key", ["ssim", "ssim_gtm"])
def test_ssim_needs_its_window(key):
    small = np.zeros((10, 400, 3), np.uint8)
    with pytest.raises(InputError, match="400x10.*11 px"):
        METRICS[key].function(small, small)
    assert METRICS["psnr"].function(small, small) == math.inf


def test_cards_are_complete_and_told_apart():
    protocols = [card.protocol for card in METRICS.values()]
    assert len(set(protocols)) == len(METRICS)
    assert METRICS["ssim"].protocol == "ssim[rgb,g11,s1.5,valid,u8]"
    for key, card in METRICS.items():
        assert key == card.key and card.better in ("up", "down")
        assert card.gt_mean == key.endswith("_gtm") == ("gtmean" in card.protocol)


def test_baselines():
    picture = np.arange(256, dtype=np.uint8).repeat(3).reshape(16, 16, 3)
    np.testing.assert_array_equal(BASELINES["identity"](picture), picture)
    for exponent in (0.4, 0.5):
        out = BASELINES[f"gamma {exponent}"](picture)
        np.testing.assert_array_equal(out, np.round(255 * (picture / 255) ** exponent))
        assert out.dtype == np.uint8 and out.shape == picture.shape
    assert BASELINES["gamma 0.5"](np.full((1, 1, 3), 64, np.uint8))[0, 0, 0] == 128
    assert BASELINES["gamma 0.4"](picture).mean() > BASELINES["gamma 0.5"](picture).mean()


def test_recorded_values_of_basicsr(shared):
    recorded = np.load(shared / "reference" / "metrics_psnr_ssim.npz")
    a, b = recorded["crop_a_uint8"], recorded["crop_b_uint8"]
    assert metrics.psnr(a, b) == pytest.approx(float(recorded["crop_psnr_rgb"]), abs=1e-4)
    assert metrics.ssim(a, b) == pytest.approx(float(recorded["crop_ssim_rgb"]), abs=1e-5)
    a4, b4 = a[4:-4, 4:-4], b[4:-4, 4:-4]
    assert metrics.psnr(a4, b4) == pytest.approx(float(recorded["crop_psnr_rgb_border4"]), abs=1e-4)
    assert metrics.ssim(a4, b4) == pytest.approx(float(recorded["crop_ssim_rgb_border4"]), abs=1e-5)
    assert metrics.psnr(a, a) == float(recorded["psnr_identical"]) == math.inf


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
