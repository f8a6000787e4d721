"""Zero-DCE (Guo et al., CVPR 2020, arXiv:2001.06826), as the official program trains it.

Data: low-light and over-exposed pictures without references; the official set is 2,002 pictures
made from SICE Part 1 (github.com/Li-Chongyi/Zero-DCE_extension). Without a folder it trains on
the built-in demo set.

Command:
  python train.py --config configs/zerodce.py --workdir runs/zerodce \
    --config.data.source=folder --config.data.low=DIR
Presets (configs/zerodce.py:NAME, a comma list, later wins): official, paper, shipped, smoke, demo.
Hardware, wall time and score: `shipped` took 17 min of 2 shared CPU cores and reached 17.97 dB /
0.722 SSIM on 41 pairs of SICE frames (the official weights: 16.76 / 0.714; README). The official
recipe is not yet measured at full length.
"""

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from lljax import optim
from lljax.config import apply_presets
from lljax.configs import common

# What the default config already says, by name: 200 epochs of 2,002 pictures at batch size 8 (the
# released file is of epoch 99, half of that).
OFFICIAL = dict(
    data=dict(resize=256),
    loss=dict(
        spatial=dict(weight=1.0, form="code"),
        exposure=dict(weight=10.0, level=0.6, form="code"),
        color=dict(weight=5.0, form="code"),
        smoothness=dict(weight=200.0, form="code"),
    ),
    phase=dict(train=dict(
        steps=50_050, batch_size=8,
        optim=dict(curve=dict(lr=1e-4, weight_decay=1e-4, clip=0.1)))),
)

# Section 3.3 and 4 of the paper. It leaves unsaid: the length (here 200 epochs of its 2,422
# pictures, after the program), weight decay and clipping ("default parameters": here none), the
# constant that biases start from (here torch's default, as the program), and how borders and
# pixel counts enter eq. 4 and 7 (lljax/losses.py says what is taken). No result of the authors
# is known for these settings: their own program does not have them.
PAPER = dict(
    data=dict(resize=512),
    loss=dict(
        spatial=dict(weight=1.0, form="paper"),
        exposure=dict(weight=1.0, level=0.6, form="paper"),
        color=dict(weight=0.5, form="paper"),
        smoothness=dict(weight=20.0, form="paper"),
    ),
    phase=dict(train=dict(
        steps=60_550, batch_size=8,
        optim=dict(curve=dict(lr=1e-4, weight_decay=0.0, clip=0.0)))),
)

# What the weights that come with lljax were trained with: small pictures and a faster rate that
# ends at 0. With channels as they are, 500 such steps learned a violet cast (few of the training
# pictures are blue); permuted, none is left.
SHIPPED = dict(
    data=dict(resize=128, permute_channels=True),
    phase=dict(train=dict(steps=800, optim=dict(curve=dict(
        lr=1e-3, schedule="linear", decay_end=800)))),
)

# The real network and terms, seconds on two cores.
SMOKE = dict(
    data=dict(resize=64),
    eval=dict(limit=2),
    log=dict(every=1),
    checkpoint=dict(every=2),
    phase=dict(train=dict(steps=4)),
)

# `make demo`: a visible result in minutes on two cores, by a faster rate and smaller pictures. The
# built-in pictures are all dark, so nothing holds bright parts back: a lower level does.
DEMO = dict(
    data=dict(resize=128),
    log=dict(samples_every=50),
    loss=dict(exposure=dict(level=0.5)),
    phase=dict(train=dict(steps=120, optim=dict(curve=dict(lr=1e-3)))),
)

# Questions of `lljax ablate --preset NAME`: a variant's name, and what it changes. An entry without
# "=" is a preset. The paper's networks are written depth-width-iterations (its section 4.1).
ABLATIONS = dict(data=common.DATA, parameters={
    "3-32-8": ("model.depth=3",),
    "7-16-8": ("model.width=16",),
    "7-32-1": ("model.iterations=1",),
    "7-32-16": ("model.iterations=16",),
    "contrast regions of 2 px": ("loss.spatial.region=2",),
    "contrast regions of 8 px": ("loss.spatial.region=8",),
    "exposure regions of 8 px": ("loss.exposure.region=8",),
    "exposure regions of 32 px": ("loss.exposure.region=32",),
    "exposure level 0.4": ("loss.exposure.level=0.4",),
    "exposure level 0.5": ("loss.exposure.level=0.5",),
    "exposure level 0.7": ("loss.exposure.level=0.7",),
})


def get_config(presets: str = "") -> ConfigDict:
    """The complete config, locked.

    Args:
      presets: comma list of official, paper, shipped, smoke, demo.
    """
    config = common.get_config("zerodce", ("curve",))
    config.data.resize = 256  # px; the paper says 512, the official program resizes to 256

    config.model = ConfigDict(dict(
        iterations=8,  # times the curve is applied, one map each, >= 1
        depth=7,  # convolutions, odd, >= 3
        width=32,  # channels of the hidden convolutions
    ))

    # enabled: in the program at all. weight: its factor in the total; 0.0 only logs the term.
    # form: code (as the official program computes it) | paper (as the paper writes it).
    config.loss = ConfigDict(dict(
        spatial=dict(  # neighbouring regions keep their difference
            enabled=True,
            weight=1.0,
            region=4,  # side of a region, px
            form="code",
        ),
        exposure=dict(  # regions are near one grey
            enabled=True,
            weight=10.0,
            region=16,  # side of a region, px
            level=0.6,  # that grey, in [0, 1]; the paper finds 0.4 to 0.7 alike
            form="code",
        ),
        color=dict(  # the channels have one mean
            enabled=True,
            weight=5.0,
            form="code",
        ),
        smoothness=dict(  # the curve maps vary little
            enabled=True,
            weight=200.0,
            form="code",
        ),
        saturation=dict(  # pixels are near the mean colour; defined, not used officially
            enabled=False,
            weight=1.0,
        ),
        perceptual=dict(  # VGG16 features stay those of the input; likewise not used officially
            enabled=False,
            weight=1.0,
            vgg16=placeholder(str),  # file of torchvision VGG16 weights, .pth or .safetensors
            layer="relu4_3",  # relu1_1 ... relu5_3
            normalize=False,  # scale the input as ImageNet training did; officially not
        ),
    ))

    config.phases = ("train",)
    config.phase = ConfigDict(dict(train=dict(
        steps=50_050,  # updates; 200 epochs of 2,002 pictures
        batch_size=8,  # pictures an update, over all devices
        microbatch=-1,  # pictures a forward pass; -1 = 1 on CPU and all elsewhere, 0 = all
        optim=dict(curve=optim.default(lr=1e-4, weight_decay=1e-4, clip=0.1)),
    )))
    return apply_presets(config, presets, dict(official=OFFICIAL, paper=PAPER, shipped=SHIPPED,
                                               smoke=SMOKE, demo=DEMO))
