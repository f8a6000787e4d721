"""Zero-DCE++ (Li et al., TPAMI 2021, arXiv:2103.00860), as the official program trains it.

Data: low-light and over-exposed pictures without references; the official set is 2,002 pictures
made from SICE Part 1 (github.com/Li-Chongyi/Zero-DCE_extension). Without a folder it trains on
the built-in demo set.

Command:
  python train.py --config configs/zerodcepp.py --workdir runs/zerodcepp \
    --config.data.source=folder --config.data.low=DIR
Presets (configs/zerodcepp.py:NAME, a comma list, later wins): official, shipped, smoke, demo.
Hardware, wall time and score: the official recipe is not yet measured at full length.
"""

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from lljax import optim
from lljax.config import apply_presets
from lljax.configs import common

# What the default config already says, by name: 100 epochs of 2,002 pictures at batch size 8.
OFFICIAL = dict(
    data=dict(resize=512),
    model=dict(scale=12, train_scale=1),
    loss=dict(
        spatial=dict(weight=1.0, form="code"),
        exposure=dict(weight=10.0, level=0.6, form="code"),
        color=dict(weight=5.0, form="code"),
        smoothness=dict(weight=1600.0, form="code"),
    ),
    phase=dict(train=dict(
        steps=25_025, batch_size=8,
        optim=dict(curve=dict(lr=1e-4, weight_decay=1e-4, clip=0.1)))),
)

# What the weights that come with lljax were trained with: small pictures, which are what the
# network sees in use, and a faster rate that ends at 0.
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

# A visible result in minutes on two cores, by a faster rate and smaller pictures. The built-in
# pictures are all dark, so nothing holds bright parts back: a lower level does.
DEMO = dict(
    data=dict(resize=128),
    log=dict(samples_every=50),
    loss=dict(exposure=dict(level=0.5)),
    phase=dict(train=dict(steps=200, optim=dict(curve=dict(lr=1e-3)))),
)

# Questions of `lljax ablate --preset NAME`: a variant's name, and what it changes.
ABLATIONS = dict(data=common.DATA, parameters={
    "depth 3": ("model.depth=3",),
    "width 16": ("model.width=16",),
    "1 iteration": ("model.iterations=1",),
    "16 iterations": ("model.iterations=16",),
    "contrast regions of 2 px": ("loss.spatial.region=2",),
    "contrast regions of 8 px": ("loss.spatial.region=8",),
    "exposure regions of 8 px": ("loss.exposure.region=8",),
    "exposure regions of 32 px": ("loss.exposure.region=32",),
    "curves at full size": ("model.scale=1",),
    "curves at 1/4": ("model.scale=4",),
    "curves at 1/20": ("model.scale=20",),
})


def get_config(presets: str = "") -> ConfigDict:
    """The complete config, locked.

    Args:
      presets: comma list of official, shipped, smoke, demo.
    """
    config = common.get_config("zerodcepp", ("curve",))
    config.data.resize = 512  # px, as the official program; one side for all pictures

    config.model = ConfigDict(dict(
        iterations=8,  # times the one map's curve is applied, >= 1
        depth=7,  # convolutions, odd, >= 3
        width=32,  # channels of the hidden convolutions
        scale=12,  # in use: the map is estimated on a copy so many times smaller, >= 1
        train_scale=1,  # the same in training; the training pictures' sides are multiples of it
    ))

    # enabled: in the program at all. weight: its factor in the total; 0.0 only logs the term.
    # form: code (as the official program computes it) | paper (as Zero-DCE's paper writes it).
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
            level=0.6,  # that grey, in [0, 1]
            form="code",
        ),
        color=dict(  # the channels have one mean
            enabled=True,
            weight=5.0,
            form="code",
        ),
        smoothness=dict(  # the curve map varies little
            enabled=True,
            weight=1600.0,  # as 200 for each of Zero-DCE's 8 maps
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
        steps=25_025,  # updates; 100 epochs of 2,002 pictures
        batch_size=8,  # pictures an update, over all devices
        microbatch=-1,  # pictures a forward pass; -1 = 1 on CPU and all elsewhere, 0 = all
        optim=dict(curve=optim.default(lr=1e-4, weight_decay=1e-4, clip=0.1)),
    )))
    return apply_presets(config, presets, dict(official=OFFICIAL, shipped=SHIPPED, smoke=SMOKE,
                                               demo=DEMO))
