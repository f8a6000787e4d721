"""Loss terms: pure functions of arrays, one value an image, [B]; the caller reduces and weights.

Values and gradients are finite everywhere, black, white, grey and constant images included.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from lljax import layers
from lljax.errors import InputError, unknown

Array = jax.Array

FORMS = ("code", "paper")  # where a paper's formula and its authors' program differ
SMOOTHNESS_FORMS = ("code", "port", "released")  # of Retinex-Net's structure-aware smoothness
NORMS = ("l1", "l2", "mse")  # of terms that a paper gives as a norm and no program shows


# ---- zero-reference (Zero-DCE, Zero-DCE++) ----


def spatial(enhanced: Array, low: Array, region: int = 4, form: str = "code") -> Array:
    """Spatial consistency: neighbouring regions keep their difference.

    Args:
      enhanced: [B, H, W, 3] in [0, 1].
      low: the picture it was made from, same shape.
      region: side of the square regions in px, whose mean grey is compared; a remainder at the
        right and the bottom is left out.
      form: "code" compares signed differences and takes the outside of the picture as black, so
        that border regions also keep their level; "paper" compares magnitudes of differences,
        between regions of the picture only.

    Returns:
      [B], >= 0, 0 if `enhanced` equals `low`.

    Raises:
      ValueError: shapes differ, are not pictures, or are smaller than one region.

    Source: Guo et al., CVPR 2020, eq. 4; official `L_spa` (which also computes a brightness
      weight and never uses it).
    """
    _check_images("spatial", enhanced=enhanced, low=low)
    _check_form(form)
    if enhanced.shape != low.shape:
        raise ValueError(f"spatial: enhanced {enhanced.shape} and low {low.shape} must agree")
    after, before = _regions("spatial", enhanced, region), _regions("spatial", low, region)
    if form == "code":
        # mean_i sum_j ((Y_i - Y_j) - (I_i - I_j))^2, j the 4 neighbours, 0 outside
        total = sum(jnp.square(d) for d in _neighbour_differences(after - before, "constant"))
    else:
        # mean_i sum_j (|Y_i - Y_j| - |I_i - I_j|)^2, j the neighbours that exist
        total = sum(jnp.square(jnp.abs(y) - jnp.abs(i)) for y, i in zip(
            _neighbour_differences(after, "edge"), _neighbour_differences(before, "edge"),
            strict=True))
    return total.mean((1, 2))


def exposure(enhanced: Array, region: int = 16, level: float = 0.6, form: str = "code") -> Array:
    """Exposure control: the mean grey of every region is near one level.

    Args:
      enhanced: [B, H, W, 3] in [0, 1].
      region: side of the square regions in px; a remainder is left out.
      level: the wanted grey in [0, 1].
      form: "code" squares the distance to the level; "paper" takes its magnitude.

    Returns:
      [B], >= 0, 0 if every region has the level.

    Raises:
      ValueError: not pictures, or smaller than one region.

    Source: Guo et al., CVPR 2020, eq. 5; official `L_exp`.
    """
    _check_images("exposure", enhanced=enhanced)
    _check_form(form)
    distance = _regions("exposure", enhanced, region) - level
    # code: mean_k (Y_k - E)^2; paper: mean_k |Y_k - E|
    return (jnp.square(distance) if form == "code" else jnp.abs(distance)).mean((1, 2))


def color(enhanced: Array, form: str = "code") -> Array:
    """Colour constancy: the three channels have one mean (grey world).

    Args:
      enhanced: [B, H, W, 3] in [0, 1].
      form: "code" takes the root of the sum of fourth powers of the differences; "paper" the sum
        of their squares.

    Returns:
      [B], >= 0, 0 if the means are equal. The gradient there is 0 (the official program's is not
      a number).

    Raises:
      ValueError: not pictures.

    Source: Guo et al., CVPR 2020, eq. 6; official `L_color`.
    """
    _check_images("color", enhanced=enhanced)
    _check_form(form)
    mean = enhanced.mean((1, 2))
    # J_p - J_q for (r, g), (g, b), (b, r)
    squares = jnp.square(mean - jnp.roll(mean, -1, axis=-1))
    if form == "paper":
        return squares.sum(-1)
    # sqrt(D_rg^2 + D_gb^2 + D_rb^2) with D = (J_p - J_q)^2
    return _root(jnp.square(squares).sum(-1))


def smoothness(curves: Array, form: str = "code") -> Array:
    """Illumination smoothness: total variation of the curve maps.

    Args:
      curves: [B, H, W, 3 * maps].
      form: "code" sums mean squared differences over all channels and doubles the result;
        "paper" squares the sum of the two differences' magnitudes and averages over the maps.

    Returns:
      [B], >= 0, 0 for constant maps. The "code" form grows with the number of maps.

    Raises:
      ValueError: not maps of three channels each, or a side under 2 px.

    Source: Guo et al., CVPR 2020, eq. 7 (the mean over the pixels, left unsaid there, is taken);
      official `L_TV`.
    """
    if curves.ndim != 4 or curves.shape[-1] % 3 or min(curves.shape[1:]) < 2:
        raise ValueError(f"smoothness: curves {curves.shape} must be [B, H, W, 3 * maps] with "
                         "sides of 2 px or more")
    _check_form(form)
    down = curves[:, 1:] - curves[:, :-1]
    right = curves[:, :, 1:] - curves[:, :, :-1]
    if form == "code":
        # 2 sum_c (mean (d_y A_c)^2 + mean (d_x A_c)^2)
        return 2 * (jnp.square(down).mean((1, 2)) + jnp.square(right).mean((1, 2))).sum(-1)
    # 1/N sum_n sum_c mean (|d_x A_nc| + |d_y A_nc|)^2, on the pixels that have both
    both = jnp.abs(down[:, :, :-1]) + jnp.abs(right[:, :-1])
    return jnp.square(both).mean((1, 2)).sum(-1) / (curves.shape[-1] // 3)


def saturation(enhanced: Array) -> Array:
    """Colour spread: mean distance of the pixels from the picture's mean colour.

    Args:
      enhanced: [B, H, W, 3] in [0, 1].

    Returns:
      [B], >= 0, 0 for a picture of one colour (gradient 0 there).

    Raises:
      ValueError: not pictures.

    Source: official `Sa_Loss`, which the official training does not use; not in the paper.
    """
    _check_images("saturation", enhanced=enhanced)
    deviation = enhanced - enhanced.mean((1, 2), keepdims=True)
    # mean_i sqrt(sum_c (x_ic - mean_c)^2)
    return _root(jnp.square(deviation).sum(-1)).mean((1, 2))


# ---- retinex (Retinex-Net, LightenDiffusion's first stage) ----


def reconstruction(reflectance: Array, illumination: Array, image: Array,
                   norm: str = "l1") -> Array:
    """Reconstruction: reflectance times illumination is the picture.

    Args:
      reflectance: [B, H, W, 3] in [0, 1].
      illumination: [B, H, W, 1] or [B, H, W, 3], in [0, 1] or, adjusted, unbounded.
      image: the picture they should make, [B, H, W, 3] in [0, 1].
      norm: "l1", "l2" or "mse" of the difference, as in `content`.

    Returns:
      [B], >= 0, 0 if they make it (gradient 0 there, with each norm).

    Raises:
      ValueError: shapes disagree or are not pictures, or an unknown norm.

    Source: Wei et al., BMVC 2018, L_recon; of one picture, with its own or the other one's
      reflectance, and of the enhanced picture. Without the weights. Jiang et al., ECCV 2024
      (LightenDiffusion), L_rec, of latents: as far as we know printed as a 1-norm, too; whether a
      sum or a mean is meant is open.
    """
    _check_images("reconstruction", reflectance=reflectance, image=image)
    if (reflectance.shape != image.shape or illumination.shape[:-1] != image.shape[:-1]
            or illumination.shape[-1] not in (1, 3)):
        raise ValueError(f"reconstruction: reflectance {reflectance.shape}, illumination "
                         f"{illumination.shape} (1 or 3 channels) and image {image.shape} must "
                         "agree")
    # ||R * I - S||, of the mean
    return _norm(norm, reflectance * illumination - image)


def reflectance_consistency(low: Array, high: Array, norm: str = "l1") -> Array:
    """Invariable reflectance: two exposures of one scene have the same.

    Args:
      low: reflectance of the dark picture, [B, H, W, 3] in [0, 1].
      high: reflectance of the bright one, same shape.
      norm: "l1", "l2" or "mse" of the difference, as in `content`.

    Returns:
      [B], >= 0, 0 if they are equal (gradient 0 there, with each norm).

    Raises:
      ValueError: shapes disagree or are not pictures, or an unknown norm.

    Source: Wei et al., BMVC 2018, L_ir. The PyTorch port stops the gradient of `high`, which is
      left to the caller. Jiang et al., ECCV 2024 (LightenDiffusion), L_ref, of latents: as far as
      we know printed as a 1-norm, too; whether a sum or a mean is meant is open.
    """
    _check_images("reflectance_consistency", low=low, high=high)
    if low.shape != high.shape:
        raise ValueError(f"reflectance_consistency: low {low.shape} and high {high.shape} must "
                         "agree")
    # ||R_l - R_h||, of the mean
    return _norm(norm, low - high)


def structure_smoothness(illumination: Array, reflectance: Array, edge: float = 10.0,
                         form: str = "code") -> Array:
    """Structure-aware smoothness: illumination changes only where the reflectance does.

    Args:
      illumination: [B, H, W, 1].
      reflectance: [B, H, W, 3] in [0, 1]; the gradient flows through it too.
      edge: how fast a change of the reflectance lifts the penalty, >= 0.
      form: "code", the official program; "port", the PyTorch port; "released", the program that
        trained the released weights (with edge 5 for Decom-Net and 1 for Enhance-Net). See Source.

    Returns:
      [B], >= 0, 0 for an illumination of zeros. A constant one is not quite 0: every form sees
      black outside the picture, on the right and below ("port": on all sides).

    Raises:
      ValueError: shapes disagree or are not pictures, or an unknown form.

    Source: Wei et al., BMVC 2018, L_is, which has the reflectance's gradient itself in the
      exponent; all programs average its magnitude over 3 x 3 px first. The port pads all sides,
      also in that average, and so has maps of (H + 1) x (W + 1). "released" is read from the
      graph beside the released weights; it sums averages over 3, 5 and 7 px.
    """
    _check_images("structure_smoothness", reflectance=reflectance)
    if illumination.shape != (*reflectance.shape[:-1], 1):
        raise ValueError(f"structure_smoothness: illumination {illumination.shape} must be "
                         f"[B, H, W, 1] and agree with reflectance {reflectance.shape}")
    _check_form(form, SMOOTHNESS_FORMS)
    # mean (|d_x I| exp(-edge A(|d_x g|)) + |d_y I| exp(-edge A(|d_y g|))), g the grey of R
    pairs = zip(_edges(illumination[..., 0], form), _edges(_grey(reflectance, form), form),
                strict=True)
    return sum(light * jnp.exp(-edge * _softened(structure, form))
               for light, structure in pairs).mean((1, 2))


def _grey(images: Array, form: str) -> Array:
    red = 0.299 if form == "port" else 0.2989  # TensorFlow's
    # not a matrix product: a GPU would round it to ten bits
    return (images * jnp.array([red, 0.587, 0.114], images.dtype)).sum(-1)


def _edges(x: Array, form: str) -> tuple[Array, Array]:
    """|d_x| and |d_y| of maps [B, H, W]. Each is taken one px further along the other axis."""
    before = 1 if form == "port" else 0
    x = jnp.pad(x, ((0, 0), (before, 1), (before, 1)))
    # correlation with [[0, 0], [-1, 1]] and its transpose
    return jnp.abs(x[:, 1:, 1:] - x[:, 1:, :-1]), jnp.abs(x[:, 1:, 1:] - x[:, :-1, 1:])


def _softened(x: Array, form: str) -> Array:
    if form == "port":
        return _box(x, 3) / 9  # counts what lies outside
    ones = jnp.ones((1, *x.shape[1:]), x.dtype)
    scales = {3: 1.0, 5: 0.66, 7: 0.33} if form == "released" else {3: 1.0}
    return sum(weight * _box(x, side) / _box(ones, side) for side, weight in scales.items())


def _box(x: Array, side: int) -> Array:
    """Sums over side x side px of maps [B, H, W], zeros outside, by slices (see `_regions`)."""
    _, h, w = x.shape
    x = jnp.pad(x, ((0, 0), (side // 2,) * 2, (side // 2,) * 2))
    x = sum(x[:, i:i + h] for i in range(side))
    return sum(x[:, :, i:i + w] for i in range(side))


def content(decoded: Array, image: Array, norm: str = "l2") -> Array:
    """Content: an autoencoder gives back the picture.

    Args:
      decoded: [B, H, W, C].
      image: what was encoded, same shape, in [0, 1].
      norm: "l1", mean magnitude of the difference; "l2", root of its mean square; "mse", its mean
        square.

    Returns:
      [B], >= 0, 0 if they are equal (gradient 0 there, with each norm).

    Raises:
      ValueError: shapes differ, or an unknown norm.

    Source: Jiang et al., ECCV 2024 (LightenDiffusion), L_con, printed as a 2-norm; no program of
      this stage is published. A mean instead of the sum: the value does not grow with the picture.
    """
    _check_same("content", decoded=decoded, image=image)
    # ||D(E(I)) - I||, of the mean
    return _norm(norm, decoded - image)


def latent_smoothness(illumination: Array, reflectance: Array, edge: float = 10.0,
                      norm: str = "l1") -> Array:
    """Smoothness of a latent's illumination: it changes only where the reflectance does.

    Args:
      illumination: [B, h, w, 1] or [B, h, w, C].
      reflectance: [B, h, w, C]; the gradient flows through it too.
      edge: how fast a change of the reflectance lifts the penalty, >= 0.
      norm: "l1", "l2" or "mse", as in `content`, over both directions' differences.

    Returns:
      [B], >= 0, 0 for a constant illumination (gradient 0 there, with each norm).

    Raises:
      ValueError: shapes disagree, a side under 2 px, or an unknown norm.

    Source: Jiang et al., ECCV 2024 (LightenDiffusion), L_ill, as far as we know printed as a norm
      without saying which; no program of this stage is published. The default is the norm of
      Retinex-Net's smoothness. As in `structure_smoothness` the exponent takes the magnitude of
      the reflectance's change, which the paper leaves out; here channel by channel, unaveraged,
      and between neighbours inside the latent only.
    """
    if (reflectance.ndim != 4 or min(reflectance.shape[1:3]) < 2
            or illumination.shape[:-1] != reflectance.shape[:-1]
            or illumination.shape[-1] not in (1, reflectance.shape[-1])):
        raise ValueError(f"latent_smoothness: illumination {illumination.shape} (1 channel or all) "
                         f"and reflectance {reflectance.shape} must agree, [B, h, w, C], with "
                         "sides of 2 px or more")
    # ||grad L exp(-edge |grad R|)||, of the mean
    return _norm(norm, *(jnp.diff(illumination, axis=axis)
                         * jnp.exp(-edge * _magnitude(jnp.diff(reflectance, axis=axis)))
                         for axis in (1, 2)))


# ---- diffusion (LightenDiffusion) ----


def noise_error(predicted: Array, noise: Array) -> Array:
    """Noise prediction: the network finds the noise that was added.

    Args:
      predicted: [B, h, w, C].
      noise: what was added, same shape.

    Returns:
      [B], >= 0, 0 if it is found.

    Raises:
      ValueError: shapes differ.

    Source: Ho et al., NeurIPS 2020, eq. 14.
    """
    _check_same("noise_error", predicted=predicted, noise=noise)
    # mean (e_theta - e)^2
    return _norm("mse", predicted - noise)


def consistency(restored: Array, reference: Array) -> Array:
    """Self-constrained consistency: a sampled latent keeps the content of the dark picture.

    Args:
      restored: [B, h, w, C] in [0, 1].
      reference: reflectance times brightened illumination of the dark picture, same shape.

    Returns:
      [B], >= 0, 0 if they are equal.

    Raises:
      ValueError: shapes differ.

    Source: Jiang et al., ECCV 2024 (LightenDiffusion), L_scc.
    """
    _check_same("consistency", restored=restored, reference=reference)
    # mean |F_hat - R L^gamma|
    return _norm("l1", restored - reference)


# ---- adversarial (EnlightenGAN) ----


def least_squares(scores: Array, target: float) -> Array:
    """Least-squares adversarial term: a discriminator's scores are near one number.

    Args:
      scores: [B, ...], e.g. a map [B, h, w, 1] or those of several patches of an image.
      target: 1 for "real", 0 for "made".

    Returns:
      [B], >= 0, 0 if every score is the target.

    Source: Mao et al., ICCV 2017, eq. 2; Jiang et al., TIP 2021, eq. 5 and 6 (EnlightenGAN).
    """
    # mean (D - target)^2
    return jnp.square(scores - target).reshape(len(scores), -1).mean(1)


def relativistic(better: Array, worse: Array, mean_better: Array, mean_worse: Array) -> Array:
    """Relativistic average least-squares term: one side scores 1 more than the other's mean.

    For the discriminator `better` are the scores of real pictures and `worse` those of the
    generator's; for the generator the two change places.

    Args:
      better: scores that should be higher, [B, ...].
      worse: scores that should be lower, [B, ...].
      mean_better: mean of `better` over the whole batch (all devices), a scalar.
      mean_worse: the same of `worse`.

    Returns:
      [B], >= 0; 0 if all of `better` is 1 above `mean_worse` and all of `worse` 0 above
      `mean_better`, which cannot both be; 0.5 for scores that do not tell the sides apart.

    Source: Jiang et al., TIP 2021, eq. 3 and 4, halved as in the official program.
    """
    # 1/2 (mean (b - mean w - 1)^2 + mean (w - mean b)^2)
    return 0.5 * (least_squares(better - mean_worse, 1.0) + least_squares(worse - mean_better, 0.0))


def self_feature(features_enhanced: Array, features_low: Array) -> Array:
    """Self feature preserving: features stay those of the input, up to brightness and contrast.

    Args:
      features_enhanced: [B, h, w, C], e.g. of `layers.vgg16_features`.
      features_low: features of the input picture, same shape.

    Returns:
      [B], >= 0, 0 for features that are equal after instance normalisation.

    Raises:
      ValueError: shapes differ or are not [B, h, w, C].

    Source: Jiang et al., TIP 2021, eq. 7; the normalisation is the official program's default.
    """
    # mean (IN(F(enhanced)) - IN(F(low)))^2
    return perceptual(layers.instance_norm(features_enhanced), layers.instance_norm(features_low))


# ---- perceptual ----


def perceptual(features_enhanced: Array, features_low: Array) -> Array:
    """Mean squared difference of two feature maps.

    Args:
      features_enhanced: [B, h, w, C], e.g. of `layers.vgg16_features`.
      features_low: features of the picture to resemble, same shape.

    Returns:
      [B], >= 0, 0 for equal features.

    Raises:
      ValueError: shapes differ or are not [B, h, w, C].

    Source: Johnson et al., ECCV 2016, eq. 2. The official Zero-DCE has a module of VGG16 relu4_3
      features (`perception_loss`) but neither a distance of them nor a use.
    """
    if features_enhanced.ndim != 4 or features_enhanced.shape != features_low.shape:
        raise ValueError(f"perceptual: features {features_enhanced.shape} and "
                         f"{features_low.shape} must be [B, h, w, C] and agree")
    # 1/(hwC) |F(enhanced) - F(low)|^2
    return jnp.square(features_enhanced - features_low).mean((1, 2, 3))


# ---- shared by the terms ----


def _check_images(term: str, **images: Array) -> None:
    for name, image in images.items():
        if image.ndim != 4 or image.shape[-1] != 3:
            raise ValueError(f"{term}: {name} {image.shape} must be [B, H, W, 3]")


def _check_same(term: str, **arrays: Array) -> None:
    (one, a), (other, b) = arrays.items()
    if a.ndim != 4 or a.shape != b.shape:
        raise ValueError(f"{term}: {one} {a.shape} and {other} {b.shape} must be [B, H, W, C] and "
                         "agree")


def _norm(norm: str, *parts: Array) -> Array:
    """A norm of NORMS, [B]: the sum over the parts of means over an image."""
    if norm not in NORMS:
        raise unknown("norm of a loss term", norm, NORMS)
    if norm == "l1":
        return sum(_magnitude(part).mean((1, 2, 3)) for part in parts)
    mean = sum(jnp.square(part).mean((1, 2, 3)) for part in parts)
    return _root(mean) if norm == "l2" else mean


def _check_form(form: str, forms: tuple[str, ...] = FORMS) -> None:
    if form not in forms:
        raise unknown("form of a loss term", form, forms)


def _regions(term: str, images: Array, region: int) -> Array:
    """Mean grey of the regions, [B, H // region, W // region]."""
    b, h, w, _ = images.shape
    if region < 1 or min(h, w) < region:
        raise InputError(f"{term}: pictures of {h} x {w} px (shape {images.shape}) hold no region "
                         f"of {region} x {region} px; use larger pictures or a smaller region")
    rows, columns = h // region, w // region
    grey = images.mean(-1)[:, :rows * region, :columns * region]
    # reshape and mean: its gradient is many times faster than a window reduction's
    return grey.reshape(b, rows, region, columns, region).mean((2, 4))


def _neighbour_differences(x: Array, outside: str) -> tuple[Array, Array, Array, Array]:
    """x_i - x_j for the left, right, upper and lower neighbour j; `outside` pads as jnp.pad."""
    padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1)), mode=outside)
    return (x - padded[:, 1:-1, :-2], x - padded[:, 1:-1, 2:],
            x - padded[:, :-2, 1:-1], x - padded[:, 2:, 1:-1])


def _root(x: Array) -> Array:
    """Square root whose gradient at 0 is 0; the inner `where` keeps infinity out of it."""
    positive = x > 0
    return jnp.where(positive, jnp.sqrt(jnp.where(positive, x, 1.0)), 0.0)


def _magnitude(x: Array) -> Array:
    """|x| whose gradient at 0 is 0, as torch's; that of jnp.abs is 1."""
    return x * jnp.sign(x)
