"""Metrics: a card for each, so that a number is never shown without what it means.

Every function takes the pixels a user gets: uint8 RGB [H, W, 3], of one size. SSIM and LPIPS run on
the device, the rest on the host; all but LPIPS, NIQE and BRISQUE, which follow programs of less,
in float64. So values depend on the device by rounding alone.

A protocol says what PSNR, SSIM and the gt-mean columns are, so that old papers' numbers can be
compared like with like; every other column is the same under each.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from scipy.ndimage import correlate1d

from lljax.errors import InputError, unknown
from lljax.evaluation import appearance, blind
from lljax.evaluation.appearance import GREY

PEAK = 255.0
WINDOW = 11  # px, side of the SSIM window
SIGMA = 1.5  # px, standard deviation of the SSIM window
C1 = (0.01 * PEAK) ** 2
C2 = (0.03 * PEAK) ** 2

Function = Callable[[np.ndarray, np.ndarray | None, np.ndarray], float]


@dataclass(frozen=True)
class Metric:
    """What a metric is: its card, and the function.

    Attributes:
      key: name in results files, e.g. "psnr".
      title: heading of its column.
      what: what is computed, in a few words.
      unit: "dB", "grey levels" or "" (a pure number).
      better: "up", "down", or "one": the nearer to 1 (twice is as far as half).
      range: smallest and largest possible value.
      colour_space: what it is computed from.
      reference_program: the program that it equals.
      tolerance: largest absolute difference from that program; the tests hold it to this.
      gt_mean: whether the output first gets the reference's mean grey. Such a value uses the
        reference twice and is not comparable with one that does not.
      protocol: all of this in short; printed beside every number.
      digits: decimals shown in tables.
      min_size: shortest shorter and longer side that it is defined for, px.
      needs: what the output is compared with: "reference", "low" (the input) or "" (nothing).
      function: (enhanced, reference, low), uint8 [H, W, 3] each -> float; never NaN. Where `needs`
        is not "reference", the reference may be None. Raises InputError.
      infinite: what k infinite values say, for notes; "" if none ever is.
    """

    key: str
    title: str
    what: str
    unit: str
    better: str
    range: tuple[float, float]
    colour_space: str
    reference_program: str
    tolerance: float
    gt_mean: bool
    protocol: str
    digits: int
    min_size: tuple[int, int]
    needs: str
    function: Function
    infinite: str = ""

    @property
    def heading(self) -> str:
        """Title, unit and direction, e.g. "PSNR dB (up)"."""
        direction = "(1 is best)" if self.better == "one" else f"({self.better})"
        return " ".join(filter(None, (self.title, self.unit, direction)))

    def card(self) -> dict[str, Any]:
        """Everything but the function, as JSON has it: its infinity is the string "inf"."""
        made = {field.name: getattr(self, field.name) for field in fields(self)
                if field.name not in ("key", "function", "infinite")}
        return {**made, "range": [end if math.isfinite(end) else "inf" for end in self.range]}

    def merit(self, values: np.ndarray) -> np.ndarray:
        """Values [n] on a scale on which more is better, [n]."""
        if self.better == "one":
            return nearness(values)
        return values if self.better == "up" else -values


def nearness(values: np.ndarray) -> np.ndarray:
    """How near ratios [n], 0 or more, are to 1: 0 at 1, less elsewhere; half is as far as twice."""
    with np.errstate(divide="ignore"):
        return -np.abs(np.log(values))


def check(enhanced: np.ndarray, reference: np.ndarray, min_size: tuple[int, int] = (1, 1),
          what: str = "", names: tuple[str, str] = ("enhanced", "reference")) -> None:
    """Refuses what cannot be compared pixel by pixel; nothing is ever resized or rescaled.

    Args:
      enhanced: meant to be uint8 [H, W, 3], RGB.
      reference: the same.
      min_size: shortest allowed shorter and longer side in px.
      what: the metric that needs this size.
      names: what the two pictures are, for messages.

    Raises:
      InputError: another type or shape, two sizes, or a picture that is too small.
    """
    for name, picture in zip(names, (enhanced, reference), strict=True):
        kind = getattr(picture, "dtype", type(picture).__name__)
        if kind != np.uint8:
            raise InputError(f"the {name} picture is {kind}; metrics take uint8, 0 to 255: clip, "
                             "scale and round it first")
        if picture.ndim != 3 or picture.shape[2] != 3:
            raise InputError(f"the {name} picture has shape {tuple(picture.shape)}; "
                             "metrics take RGB [height, width, 3]")
    if enhanced.shape != reference.shape:
        raise InputError(f"sizes differ: {names[0]} is {_size(enhanced)} and {names[1]} is "
                         f"{_size(reference)} (width x height); metrics never resize")
    short, long = sorted(enhanced.shape[:2])
    if short < min_size[0] or long < min_size[1]:
        wanted = (f"at least {min_size[0]} px a side" if min_size[0] == min_size[1]
                  else f"sides of at least {min_size[0]} px and {min_size[1]} px")
        raise InputError(f"the picture is {_size(enhanced)} (width x height); {what or 'it'} "
                         f"needs {wanted}")


def _size(picture: np.ndarray) -> str:
    return f"{picture.shape[1]}x{picture.shape[0]}"


def psnr(enhanced: np.ndarray, reference: np.ndarray) -> float:
    """Peak signal-to-noise ratio over all pixels and channels, in dB; inf for equal pictures.

    Args:
      enhanced: uint8 [H, W, 3], RGB.
      reference: the same size.

    Raises:
      InputError: see `check`.
    """
    return METRICS["psnr"].function(enhanced, reference, enhanced)


def ssim(enhanced: np.ndarray, reference: np.ndarray) -> float:
    """Structural similarity, mean over channels and over the windows inside the picture; <= 1.

    Gaussian window of 11 px, sigma 1.5 px, population covariance, K1 = 0.01, K2 = 0.03: BasicSR's
    and MATLAB's, and scikit-image's with `gaussian_weights=True, sigma=1.5,
    use_sample_covariance=False, channel_axis=2, data_range=255`. SSIM of the grey picture, which
    some papers report, is 0.1 to 0.2 higher.

    Source: Wang et al. 2004, "Image quality assessment: from error visibility to structural
    similarity", equation 13.

    Args:
      enhanced: uint8 [H, W, 3], RGB, each side at least 11 px.
      reference: the same size.

    Raises:
      InputError: see `check`.
    """
    return METRICS["ssim"].function(enhanced, reference, enhanced)


def mae(enhanced: np.ndarray, reference: np.ndarray) -> float:
    """Mean absolute difference over all pixels and channels, in grey levels, 0 to 255.

    Args:
      enhanced: uint8 [H, W, 3], RGB.
      reference: the same size.

    Raises:
      InputError: see `check`.
    """
    return METRICS["mae"].function(enhanced, reference, enhanced)


def gt_mean(enhanced: np.ndarray, reference: np.ndarray, weights: np.ndarray = GREY) -> np.ndarray:
    """The output scaled to the reference's mean grey and clipped: float64 [H, W, 3], 0 to 255.

    Papers have at least four "gt-mean" corrections. This one weights RGB by 0.299, 0.587, 0.114
    and does not round after scaling (HVI-CIDNet's; Retinexformer's has the weights of red and blue
    swapped, see `PROTOCOLS`). A black output has no scale and stays black.

    Args:
      enhanced: uint8 [H, W, 3], RGB.
      reference: the same size.
      weights: of R, G and B in the mean grey.

    Raises:
      InputError: see `check`.
    """
    check(enhanced, reference)
    return _scale(enhanced, appearance.mean_grey(enhanced, weights),
                  appearance.mean_grey(reference, weights))


def _gt_mean_llflow(enhanced: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """Mean of R, G and B of the output to the mean grey of the reference, then truncated."""
    scaled = _scale(enhanced, float(enhanced.mean(dtype=np.float64)),
                    appearance.mean_grey(reference, GREY[::-1]))
    return np.floor(scaled)


def _scale(enhanced: np.ndarray, ours: float, theirs: float) -> np.ndarray:
    if ours == 0:
        return enhanced.astype(np.float64)
    return np.clip(enhanced * (theirs / ours), 0, PEAK)


def _psnr(a: np.ndarray, b: np.ndarray) -> float:
    mse = np.mean((a - b) ** 2)
    return float(10 * np.log10(PEAK**2 / mse)) if mse else math.inf


def _mae(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.mean(np.abs(a - b)))


@dataclass(frozen=True)
class _Window:
    """The window of an SSIM, moved over all places where it lies inside the picture."""

    taps: tuple[float, ...]  # along each axis
    axes: tuple[int, ...] = (0, 1)
    sample: bool = False  # sample covariance instead of the population's

    def mean(self, plane: np.ndarray) -> np.ndarray:
        """Weighted mean around every pixel whose window lies inside: [H, W], fewer pixels."""
        half = len(self.taps) // 2
        for axis in self.axes:
            plane = correlate1d(plane, self.taps, axis=axis)
            plane = plane[half:-half] if axis == 0 else plane[:, half:-half]
        return plane

    @property
    def unbiased(self) -> float:
        """What a population covariance is multiplied with."""
        count = len(self.taps) ** len(self.axes)
        return count / (count - 1) if self.sample else 1.0


def _gaussian(side: int, sigma: float) -> tuple[float, ...]:
    taps = np.exp(-0.5 * (np.arange(-(side // 2), side // 2 + 1) / sigma) ** 2)
    return tuple(taps / taps.sum())


_G11 = _Window(_gaussian(WINDOW, SIGMA))
_U7 = _Window((1 / 7,) * 7, sample=True)
_U7_COLUMNS = _Window((1 / 7,) * 7, axes=(0,), sample=True)


def _ssim(a: np.ndarray, b: np.ndarray) -> float:
    """With the Gaussian window, of [H, W, C] or [H, W]: by dm-pix, where the device has float64."""
    from lljax.evaluation import device_ssim  # JAX is slow to import

    if device_ssim.has_float64():
        return device_ssim.ssim(a, b)
    return _ssim_on_host(a, b, _G11)


def _ssim_on_host(a: np.ndarray, b: np.ndarray, window: _Window) -> float:
    # One channel at a time: a plane of a usual picture stays in the processor's cache.
    planes = [(a, b)] if a.ndim == 2 else [(a[..., c], b[..., c]) for c in range(a.shape[2])]
    return float(np.mean([_ssim_plane(*pair, window) for pair in planes]))


def _ssim_plane(a: np.ndarray, b: np.ndarray, window: _Window) -> float:
    mean_a, mean_b = window.mean(a), window.mean(b)
    product = mean_a * mean_b
    squares = mean_a**2 + mean_b**2
    covariance = window.mean(a * b) - product
    variances = window.mean(a**2 + b**2) - squares  # SSIM needs only their sum: one filter fewer
    if window.sample:
        covariance, variances = window.unbiased * covariance, window.unbiased * variances
    # (2 ma mb + C1) (2 sab + C2) / ((ma^2 + mb^2 + C1) (sa^2 + sb^2 + C2))
    values = ((2 * product + C1) * (2 * covariance + C2)) / ((squares + C1) * (variances + C2))
    return float(values.mean())


def _grey(rgb: np.ndarray) -> np.ndarray:
    """Grey of RGB float [H, W, 3], rounded to whole levels as MATLAB and OpenCV do: [H, W]."""
    return np.floor(rgb @ GREY + 0.5)


def _of_luma(function: Callable[..., float]) -> Callable[..., float]:
    return lambda a, b: function(blind.luma(a), blind.luma(b))


def _of_grey(function: Callable[..., float]) -> Callable[..., float]:
    return lambda a, b: function(_grey(a), _grey(b))


@dataclass(frozen=True)
class Protocol:
    """How a family of papers computes PSNR, SSIM and the gt-mean columns.

    Attributes:
      about: one line for --help and the docs.
      ssim: (a, b), float64 [H, W, 3] of 0 to 255 -> float.
      ssim_window, ssim_colour, ssim_tag, ssim_program: of the card of SSIM.
      ssim_side: shortest side that SSIM is defined for, px.
      gt_mean: (enhanced, reference), uint8 [H, W, 3] -> float64 [H, W, 3].
      gt_mean_tag: of the cards of the gt-mean columns.
      rounds: whether all gt-mean columns but PSNR are of that picture rounded to whole levels.
    """

    about: str
    ssim: Callable[[np.ndarray, np.ndarray], float]
    ssim_window: str
    ssim_colour: str
    ssim_tag: str
    ssim_program: str
    ssim_side: int
    gt_mean: Callable[[np.ndarray, np.ndarray], np.ndarray]
    gt_mean_tag: str
    rounds: bool = False


_SKIMAGE = "scikit-image peak_signal_noise_ratio, data_range=255"
_SKIMAGE_SSIM = "scikit-image structural_similarity, {}data_range=255"
_FIVE = _SKIMAGE_SSIM.format("gaussian_weights=True, sigma=1.5, use_sample_covariance=False, "
                             "channel_axis=2, ")
_G11_TAG = "g11,s1.5,valid,u8"
_RGB_MEAN = "RGB, mean over channels"
_OURS = (_ssim, "11 px Gaussian", _RGB_MEAN, f"rgb,{_G11_TAG}", _FIVE, WINDOW)
PROTOCOLS = {
    "lljax": Protocol(
        "RGB; SSIM with an 11 px Gaussian; gt-mean by BT.601 grey, not rounded", *_OURS, gt_mean,
        "gtmean601"),
    "retinexformer": Protocol(
        "as lljax, but gt-mean's weights of red and blue are swapped, and its SSIM is of the "
        "rounded picture", *_OURS, functools.partial(gt_mean, weights=GREY[::-1]), "gtmean601bgr",
        rounds=True),
    "llflow": Protocol(
        "SSIM of grey in windows of 7 px down each column; gt-mean takes the mean of R, G and B "
        "to the reference's grey (red and blue swapped) and truncates",
        lambda a, b: _ssim_on_host(_grey(a), _grey(b), _U7_COLUMNS),
        "windows of 7 px down each column", "grey, BT.601, rounded", "grey,u7x1,sample,valid,u8",
        _SKIMAGE_SSIM.format("of a grey picture with channel_axis=1, "), 7, _gt_mean_llflow,
        "gtmeanrgb-bgr,trunc"),
    "skimage-default": Protocol(
        "SSIM as scikit-image computes it unasked: RGB, uniform window of 7 px, sample covariance",
        functools.partial(_ssim_on_host, window=_U7), "windows of 7 x 7 px", _RGB_MEAN,
        "rgb,u7,sample,valid,u8",
        _SKIMAGE_SSIM.format("channel_axis=2, "), 7, gt_mean, "gtmean601"),
}
DEFAULT_PROTOCOL = "lljax"
DEFAULT = ("psnr", "ssim", "mae", "psnr_gtm", "ssim_gtm", "mae_gtm")
DEFAULT_WITHOUT_REFERENCES = ("loe", "cast", "noise")


@dataclass(frozen=True)
class Files:
    """Files that some metrics need; a metric without its files cannot be computed.

    Attributes:
      niqe: NIQE's parameters, see `blind.Niqe`.
      lpips_alex: AlexNet and LPIPS's heads for it, see `lpips.Lpips`.
      lpips_vgg: VGG16 and LPIPS's heads for it.
      brisque: BRISQUE's model and range, see `blind.Brisque`.
    """

    niqe: str | None = None
    lpips_alex: Sequence[str] | None = None
    lpips_vgg: Sequence[str] | None = None
    brisque: Sequence[str] | None = None


_BACKBONES = {"alex": "AlexNet", "vgg": "VGG16"}
_LPIPS_SIDE = {"alex": 31, "vgg": 16}  # px; below, a pooling has nothing to pool
_FLAGS = {"niqe": "--niqe FILE", "lpips_alex": "--lpips-alex ALEXNET HEADS",
          "lpips_vgg": "--lpips-vgg VGG16 HEADS", "brisque": "--brisque MODEL RANGE"}


def _full_reference(protocol: Protocol, key: str, title: str, what: str, unit: str, better: str,
                    limits: tuple[float, float], colour_space: str, program: str,
                    tolerance: float, tag: str, digits: int, side: int,
                    compute: Callable[[np.ndarray, np.ndarray], float]) -> list[Metric]:
    """The cards of a metric on float64 pictures of 0 to 255: as it is, and after gt-mean."""
    infinite = "k outputs equal their reference" if unit == "dB" else ""

    def plain(enhanced, reference, low):
        check(enhanced, reference, (side, side), title)
        return compute(enhanced.astype(np.float64), reference.astype(np.float64))

    def corrected(enhanced, reference, low):
        check(enhanced, reference, (side, side), f"{title}-gtm")
        scaled = protocol.gt_mean(enhanced, reference)
        if protocol.rounds and unit != "dB":
            scaled = np.rint(scaled)
        return compute(scaled, reference.astype(np.float64))

    def card(end: str, told: str, function: Function) -> Metric:
        strings = ",".join(filter(None, (tag, end and protocol.gt_mean_tag)))
        return Metric(key + end.replace("-", "_"), title + end, told, unit, better, limits,
                      colour_space, program, tolerance, bool(end),
                      f"{key.split('_')[0]}[{strings}]", digits, (side, side), "reference",
                      function, infinite)

    return [card("", what, plain),
            card("-gtm", f"{title} of the output scaled to the reference's mean grey", corrected)]


def _other(key: str, title: str, what: str, unit: str, better: str, limits: tuple[float, float],
           colour_space: str, program: str, tolerance: float, tag: str, digits: int,
           min_size: tuple[int, int], needs: str, function: Function,
           infinite: str = "") -> Metric:
    """The card of a metric that may do without a reference."""
    def checked(enhanced, reference, low):
        second = reference if needs == "reference" else low
        name = "reference" if needs == "reference" else "low"
        check(enhanced, second, min_size, title, ("enhanced", name))
        return function(enhanced, reference, low)

    return Metric(key, title, what, unit, better, limits, colour_space, program, tolerance, False,
                  f"{key.split('_')[0]}[{tag}]", digits, min_size, needs, checked, infinite)


def cards(protocol: str = DEFAULT_PROTOCOL, files: Files = Files(),
          references: bool = True) -> dict[str, Metric]:
    """Every metric that can be computed, by key.

    Args:
      protocol: of `PROTOCOLS`.
      files: what was given; without its files a metric is not among these.
      references: whether there are references; else only what does without.

    Raises:
      InputError: an unknown protocol, or a file that does not hold what it is given for.
    """
    return {key: card for key, card in described(protocol, files, references).items()
            if _file_of(key) is None or getattr(files, _file_of(key))}


def described(protocol: str = DEFAULT_PROTOCOL, files: Files = Files(),
              references: bool = True) -> dict[str, Metric]:
    """As `cards`, and those whose files were not given: calling these raises InputError."""
    if protocol not in PROTOCOLS:
        raise unknown("protocol", protocol, PROTOCOLS)
    rules = PROTOCOLS[protocol]
    positive, ssim_range, levels = (0.0, math.inf), (-1.0, 1.0), (0.0, PEAK)
    of = functools.partial(_full_reference, rules)
    made = [
        *of("psnr", "PSNR", "peak signal-to-noise ratio over all pixels and channels", "dB", "up",
            positive, "RGB", _SKIMAGE, 1e-6, "rgb,u8", 2, 1, _psnr),
        *of("ssim", "SSIM", f"structural similarity, {rules.ssim_window}", "", "up", ssim_range,
            rules.ssim_colour, rules.ssim_program, 1e-6, rules.ssim_tag, 4, rules.ssim_side,
            rules.ssim),
        *of("mae", "MAE", "mean absolute difference", "grey levels", "down", levels, "RGB",
            "numpy, mean(abs(a - b))", 1e-9, "rgb,u8,0-255", 1, 1, _mae),
        *of("psnr_y", "PSNR-Y", "PSNR of luma, not rounded", "dB", "up", positive,
            "luma, BT.601, 16 to 235", "BasicSR calculate_psnr, test_y_channel=True", 1e-5,
            "y601,u8", 2, 1, _of_luma(_psnr)),
        *of("ssim_y", "SSIM-Y", "SSIM of luma, 11 px Gaussian", "", "up", ssim_range,
            "luma, BT.601, 16 to 235", "BasicSR calculate_ssim, test_y_channel=True", 1e-6,
            f"y601,{_G11_TAG}", 4, WINDOW, _of_luma(_ssim)),
        *of("ssim_grey", "SSIM-grey", "SSIM of grey, 11 px Gaussian", "", "up", ssim_range,
            "grey, BT.601, rounded", _FIVE.replace("channel_axis=2, ", ""), 1e-6,
            f"grey601,{_G11_TAG}", 4, WINDOW, _of_grey(_ssim)),
    ]
    for net, given in (("alex", files.lpips_alex), ("vgg", files.lpips_vgg)):
        made += of(f"lpips_{net}", f"LPIPS-{net}", f"distance of {_BACKBONES[net]}'s features",
                   "", "down", positive, "RGB", f"lpips 0.1, net={net!r}, in PyTorch", 1e-5,
                   f"{net},v0.1,rgb,u8", 4, _LPIPS_SIDE[net], _lpips(net, given))
    made += [
        _other("brightness", "Brightness ratio", "mean grey over the reference's; half is as far "
               "off as twice", "", "one", positive, "grey, BT.601", "numpy, mean(a) / mean(b)",
               1e-9, "grey601,u8,to-reference", 3, (1, 1), "reference",
               lambda e, r, _: appearance.brightness(e, r), "k references are black"),
        _cast(references),
        _other("loe", "LOE", "lightness order error: pixels that swapped order with a pixel", "",
               "down", positive, "largest of R, G, B, at 50 px", "numpy, all pairs of pixels",
               1e-9, "max,u8,cubic50,to-low", 1, (1, 1), "low",
               lambda e, _, low: appearance.loe(e, low)),
        _other("noise", "Noise", "standard deviation by Immerkaer 1996; texture counts too",
               "grey levels", "down", positive, "RGB, mean over channels",
               "scipy convolve2d, the paper's 3 x 3 mask", 1e-9, "rgb,u8,immerkaer", 2, (3, 3), "",
               lambda e, _, __: appearance.noise(e)),
        _other("niqe", "NIQE", "distance from good photographs' statistics, Mittal et al. 2013",
               "", "down", positive, "luma, BT.601, 16 to 235, rounded",
               "BasicSR calculate_niqe, convert_to='y'", 1e-3, "y601,u8,b96,authors", 3,
               (blind.BLOCK, 2 * blind.BLOCK), "", _blind("niqe", blind.Niqe, files.niqe),
               "k outputs lack two blocks of 96 px with texture"),
        _other("brisque", "BRISQUE", "support vector regression on such statistics, Mittal et al. "
               "2012", "", "down", (0.0, 100.0), "grey", "OpenCV QualityBRISQUE", 1e-9,
               "opencv,u8", 2, (16, 16), "", _blind("brisque", blind.Brisque, files.brisque)),
    ]
    return {card.key: card for card in made if references or card.needs != "reference"}


def _file_of(key: str) -> str | None:
    """The field of `Files` that a metric needs, if any."""
    return next((field.name for field in fields(Files) if key.removesuffix("_gtm") == field.name),
                None)


def _lpips(net: str, given: Sequence[str] | None) -> Callable[[np.ndarray, np.ndarray], float]:
    if not given:
        return functools.partial(_absent, f"lpips_{net}")
    from lljax.evaluation.lpips import Lpips  # JAX is slow to import

    return Lpips(net, *given)


def _blind(key: str, kind: Callable[..., Callable[[np.ndarray], float]],
           given: str | Sequence[str] | None) -> Function:
    if not given:
        return functools.partial(_absent, key)
    measure = kind(*([given] if isinstance(given, str) else given))
    return lambda enhanced, _, __: measure(enhanced)


def _absent(key: str, *pictures: np.ndarray | None) -> float:
    raise InputError(f"metric {key}: {_why_not(key, references=True)}")


def _cast(references: bool) -> Metric:
    """Cast has two definitions, so two cards."""
    against = "reference" if references else "grey"
    return _other(
        "cast", "Colour cast", "angle between the mean colours of the output and the reference"
        if references else "angle between the mean colour and grey", "degrees", "down",
        (0.0, 90.0), "RGB, mean colour", f"numpy, arccos of the cosine to {against}'s", 1e-5,
        f"rgb,u8,angle-to-{against}", 2, (1, 1), "reference" if references else "",
        lambda enhanced, reference, _: appearance.cast(enhanced, reference if references else None))


def table(protocol: str = DEFAULT_PROTOCOL) -> str:
    """The card of every metric, as Markdown; those after gt-mean share a row.

    Raises:
      InputError: an unknown protocol.
    """
    made, alone = described(protocol), described(protocol, references=False)
    rows = [("metric", "what", "compares with", "better", "range", "colour space",
             "reference program", "tolerance", "shortest sides, px", "protocol string")]
    rows.append(("---",) * len(rows[0]))
    for key, card in made.items():
        if not card.gt_mean:
            rows.append(_row(card))
        if key in alone and alone[key].protocol != card.protocol:  # another one without references
            rows.append(_row(alone[key]))
    twice = ", ".join(f"`{key}`" for key, card in made.items() if card.gt_mean)
    rows.append((twice, "the same, of the output scaled to the reference's mean grey",
                 "reference, twice", *["as without `_gtm`"] * 6,
                 f"`...,{PROTOCOLS[protocol].gt_mean_tag}]`"))
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _row(card: Metric) -> tuple[str, ...]:
    heading = ", ".join(filter(None, (card.title, card.unit)))
    needs = f"; needs {_FLAGS[card.key]}" if card.key in _FLAGS else ""
    short, long = card.min_size
    return (f"`{card.key}`", f"{heading}: {card.what}{needs}",
            {"low": "input", "": "nothing"}.get(card.needs, card.needs),
            {"one": "the nearer to 1"}.get(card.better, card.better),
            f"{card.range[0]:g} to {card.range[1]:g}", card.colour_space, card.reference_program,
            f"{card.tolerance:g}", f"{short}" if short == long else f"{short} and {long}",
            f"`{card.protocol}`")


_NO_FILES = cards()
METRICS: dict[str, Metric] = {key: _NO_FILES[key] for key in DEFAULT}
"""The columns of a table unless others are asked for."""

KNOWN = tuple(described())
WITHOUT_REFERENCES = tuple(described(references=False))


def choose(asked: Iterable[str] = (), protocol: str = DEFAULT_PROTOCOL, files: Files = Files(),
           references: bool = True) -> tuple[list[Metric], dict[str, str]]:
    """The columns of a table, and why others are not among them.

    Args:
      asked: keys in the order of the columns; "default" stands for the default columns, "all" for
        all that can be computed. Nothing: the default columns and those whose files are given.
      protocol: of `PROTOCOLS`.
      files: what was given.
      references: whether there are references.

    Returns:
      Cards, and key -> why that metric is not computed: with "all" of every one, with the default
      columns of those that lack nothing but their files.

    Raises:
      InputError: an unknown metric or protocol, one that cannot be computed, or a bad file.
    """
    given = [field.name for field in fields(files) if getattr(files, field.name)]
    default = DEFAULT if references else DEFAULT_WITHOUT_REFERENCES
    wanted = list(asked) or ["default", *(key for key in given if references
                                          or key in WITHOUT_REFERENCES)]
    for key in wanted:
        if key not in ("all", "default", *KNOWN):
            raise unknown("metric", key, ("all", "default", *KNOWN))
    there = cards(protocol, files, references)
    left_out = {key: _why_not(key, references) for key in KNOWN if key not in there}
    keys: list[str] = []
    for key in wanted:
        if key in left_out:
            raise InputError(f"metric {key}: {left_out[key]}")
        keys += default if key == "default" else there if key == "all" else [key]
    told = {key: why for key, why in left_out.items() if key.removesuffix("_gtm") == key}
    if "all" not in wanted:  # who asks for nothing in particular may miss what files would add
        told = {key: why for key, why in told.items() if "default" in wanted
                and (references or key in WITHOUT_REFERENCES)}
    return [there[key] for key in dict.fromkeys(keys)], told


def _why_not(key: str, references: bool) -> str:
    """Why a known metric is not among the `cards`."""
    if not references and key not in WITHOUT_REFERENCES:
        return ("it compares with references, and there are none; without them there are "
                + ", ".join(WITHOUT_REFERENCES))
    if key == "brisque" and (reason := blind.brisque_absent()):
        return reason
    return f"it needs files: give {_FLAGS[key.removesuffix('_gtm')]}, see docs/metrics.md"
