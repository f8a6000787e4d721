"""LightenDiffusion (Jiang et al., ECCV 2024, arXiv:2407.08939), both stages.

Data: stage 1 takes two exposures of one scene (the paper: low-light pairs of SICE); stage 2 dark
and well-lit pictures that need not belong together (the paper: 180,000 unpaired ones). One run
of both stages takes pairs for both; without folders it trains on the built-in demo set.

Command, one after the other:
  python train.py --config configs/lightendiffusion.py:autoencoder_only --workdir runs/ld1 \
    --config.data.source=pairs --config.data.low=LOW --config.data.high=HIGH
  python train.py --config configs/lightendiffusion.py:denoiser_only --workdir runs/ld2 \
    --config.init.autoencoder=runs/ld1 \
    --config.data.source=unpaired --config.data.low=DARK --config.data.high=BRIGHT
Both in one run: the same without a preset, on pairs.
Presets (configs/lightendiffusion.py:NAME, a comma list, later wins):
  autoencoder_only, denoiser_only: one stage; the second needs --config.init.autoencoder
  official: numbers of the official stage 2, 512 px
  living_latent: stage 1 with further terms that make the latent carry the picture, and twice the
    learning rate; the paper's terms alone left it constant in short runs
  no_consistency, no_content_transfer, image_space: the paper's ablations
  smoke
Hardware, wall time and score: not yet measured at full length.
"""

from ml_collections import ConfigDict

from lljax import optim
from lljax.config import apply_presets
from lljax.configs import common

STAGE_1 = ("content", "reconstruction", "reflectance", "smoothness")
STAGE_2 = ("noise", "consistency")

# Pictures are only encoded and decoded; there is no denoiser.
AUTOENCODER_ONLY = dict(
    phases=("autoencoder",),
    model=dict(diffusion=False),
    loss={name: dict(enabled=False) for name in STAGE_2},
)

# Needs config.init.autoencoder.
DENOISER_ONLY = dict(
    phases=("denoiser",),
    loss={name: dict(enabled=False) for name in STAGE_1},
)

OFFICIAL = dict(
    seed=230,
    data=dict(crop=512, augment="flip"),
    phase=dict(denoiser=dict(steps=1_500_000, batch_size=12)),  # 100 epochs of 180,000 pairs
)

LIVING_LATENT = dict(
    loss=dict(content=dict(cross=1.0, bare=1.0), reconstruction=dict(weight=0.01)),
    phase=dict(autoencoder=dict(optim=dict(autoencoder=dict(lr=2e-4)))),
)

NO_CONSISTENCY = dict(loss=dict(consistency=dict(enabled=False)))

NO_CONTENT_TRANSFER = dict(model=dict(content_transfer=False))

# Decomposition and diffusion of the picture itself: nothing is encoded.
IMAGE_SPACE = dict(model=dict(levels=0), loss=dict(content=dict(enabled=False)))

# Both stages and every term, much smaller, the denoiser of one level: most of the time is the
# compiler's.
SMOKE = dict(
    data=dict(crop=32),
    model=dict(width=8, heads=2, unet_width=8, unet_mult=(1,), unet_blocks=1, unet_attention=()),
    sample=dict(steps=3),
    loss=dict(consistency=dict(steps=3)),
    eval=dict(limit=2),
    log=dict(every=1, samples=1),
    checkpoint=dict(every=1),
    phase=dict(
        autoencoder=dict(steps=2, batch_size=8),
        denoiser=dict(steps=2, batch_size=8, optim=dict(denoiser=dict(ema=0.2))),
    ),
)

PRESETS = dict(
    autoencoder_only=AUTOENCODER_ONLY, denoiser_only=DENOISER_ONLY, official=OFFICIAL,
    living_latent=LIVING_LATENT,
    no_consistency=NO_CONSISTENCY, no_content_transfer=NO_CONTENT_TRANSFER,
    image_space=IMAGE_SPACE, smoke=SMOKE)

# Questions of `lljax ablate --preset NAME`: a variant's name, and what it changes. An entry without
# "=" is a preset.
ABLATIONS = dict(data=common.DATA, modules={
    "no consistency loss": ("no_consistency",),
    "no content transfer": ("no_content_transfer",),
    "image space": ("image_space",),
})


def get_config(presets: str = "") -> ConfigDict:
    """The complete config, locked.

    Args:
      presets: comma list of names of PRESETS.
    """
    config = common.get_config("lightendiffusion", ("autoencoder", "denoiser"))
    # px, a multiple of 64; the paper says 512, which LOL's 400 px lack. 0 with data.resize and
    # data.augment="none": stage 2 encodes each picture once, not at every step.
    config.data.crop = 256
    config.data.augment = "flip"  # of both pictures alike, if they are a pair

    config.model = ConfigDict(dict(
        width=64,  # channels of the autoencoder's first level (they double) and of the retinex net
        levels=3,  # halvings before the latent; 0 = the picture is its own latent
        heads=8,  # of the retinex net's attentions
        content_transfer=True,  # the retinex net has its attentions
        diffusion=True,  # there is a denoiser; False only encodes and decodes a picture
        unet_width=64,  # channels of the denoiser's first level
        unet_mult=(1, 2, 3, 4),  # channels of its levels, in widths
        unet_blocks=2,  # residual blocks of a level (one more on the way up)
        unet_attention=(2,),  # its levels with attention, from 0
    ))
    config.diffusion = ConfigDict(dict(
        total=1000,  # steps of the noise schedule
        first=1e-4,  # variance of its first step
        last=0.02,  # and of its last; linear between
    ))
    config.sample = ConfigDict(dict(  # how a picture is enhanced
        steps=20,  # denoiser calls, 1 to diffusion.total
        eta=0.0,  # fresh noise at each step: 0.0 (none) to 1.0
        noise="gaussian",  # where sampling starts: gaussian (by the seed) | zero
        count=1,  # samples whose latents are averaged
        tile=256,  # latent px; larger latents go through the denoiser in tiles; 0 = at once
        overlap=32,  # latent px that neighbouring tiles share
    ))

    # enabled: in the program at all. weight: its factor in the total; 0.0 only logs the term.
    # norm: l1 | l2 (root of the mean square) | mse. The paper's equations of stage 1, as others
    # quote them (no program of it is published): a 2-norm for content, 1-norms for reconstruction
    # and reflectance, a norm not named for smoothness. Whether they are sums or means, squared or
    # not, is open, and so is the weight of reconstruction (1.0 or 0.1).
    config.loss = ConfigDict(dict(
        content=dict(  # a decoded latent is its picture
            enabled=True,
            weight=1.0,
            norm="l2",
            # factors of the same with the other exposure's latent, and without the features of the
            # picture; the paper's are 0.0, with which in short runs the decoder lived on the
            # features alone and the latent meant nothing (docs/lightendiffusion.md)
            cross=0.0,
            bare=0.0,
        ),
        reconstruction=dict(  # R L is the latent
            enabled=True,
            weight=1.0,
            cross=1.0,  # factor of R of one picture with L of the other
            norm="l1",
        ),
        reflectance=dict(enabled=True, weight=0.1, norm="l1"),  # R of both pictures is one
        smoothness=dict(  # L changes only where R does
            enabled=True,
            weight=0.01,
            edge=10.0,  # lambda_g, how much edges of R excuse those of L
            norm="l1",
        ),
        noise=dict(enabled=True, weight=1.0),  # the noise in a latent is found
        consistency=dict(  # a sampled latent is R L^gamma of the dark picture
            enabled=True,
            weight=0.001,
            gamma=0.2,
            steps=20,  # of the sampler, which the gradient goes through
            remat=True,  # compute each step again for the gradient: memory of one, not of all
        ),
    ))

    # autoencoder: stage 1. denoiser: stage 2, the autoencoder frozen.
    config.phases = ("autoencoder", "denoiser")
    config.phase = ConfigDict({
        name: dict(
            steps=steps,  # updates
            batch_size=12,  # images an update, over all devices
            microbatch=-1,  # images a forward pass; -1 = 1 on CPU and all elsewhere, 0 = all
            optim={name: optim.default(**adam)})
        for name, steps, adam in (
            ("autoencoder", 100_000, dict(lr=1e-4)),
            ("denoiser", 200_000, dict(lr=2e-5, ema=0.9999)))})
    return apply_presets(config, presets, PRESETS)
