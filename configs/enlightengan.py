"""EnlightenGAN (Jiang et al., TIP 2021, arXiv:1906.06972), as the official program trains it.

Data: two folders that need not show the same scenes: dark pictures and well-lit ones, of any
numbers; officially 914 and 1,016. Without folders it trains on the built-in demo set, whose two
sides are then drawn independently (its pictures are 301 px and more, so set data.crop=288).
The self feature preserving loss needs a file of VGG16 weights: add the preset vgg and
--config.vgg16.path=FILE. Without it the loss is off.

Command:
  python train.py --config configs/enlightengan.py:vgg --workdir runs/enlightengan \
    --config.data.low=DARK --config.data.high=BRIGHT --config.vgg16.path=vgg16.weight
Presets (configs/enlightengan.py:NAME, a comma list, later wins):
  official: all of the official program, knob by knob; vgg: its VGG16 terms, which is the same
    as long as no preset before it changes the defaults
  no_local, no_attention, no_feature: the paper's ablations
  ema: the generator's average is what is used; smoke
Hardware and wall time: not yet measured at full length.
Score: not yet measured at full length.
"""

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from lljax import optim
from lljax.config import apply_presets
from lljax.configs import common

EPOCH = 32  # updates of 32 images over 1,016 well-lit pictures

VGG = dict(loss=dict(feature_global=dict(enabled=True), feature_local=dict(enabled=True)))

OFFICIAL = dict(
    data=dict(crop=320, augment="flips"),
    model=dict(attention=True, times_residual=True, align_corners=True),
    vgg16=dict(style="caffe", layer="relu5_1"),
    phase=dict(train=dict(steps=200 * EPOCH, batch_size=32)),
    **VGG,
)

NO_FEATURE = dict(loss=dict(feature_global=dict(enabled=False),
                            feature_local=dict(enabled=False)))

NO_ATTENTION = dict(model=dict(attention=False, times_residual=False))

# The running statistics of the BatchNorms are means of about ten steps and not averaged further.
EMA = dict(phase=dict(train=dict(optim=dict(generator=dict(ema=0.999)))))

# Every network and term, much narrower and not as deep: most of the time is the compiler's.
SMOKE = dict(
    data=dict(crop=48),
    model=dict(width=8, disc_width=8, global_depth=2, local_depth=1),
    eval=dict(limit=2),
    log=dict(every=1, samples=1),
    checkpoint=dict(every=2),
    phase=dict(train=dict(steps=4, batch_size=8)),
)


def _no_local(config):
    config.update(dict(loss=dict(adversarial_local=dict(enabled=False),
                                 disc_local=dict(enabled=False))))
    with config.unlocked():
        del config.phase.train.optim.local_disc
        del config.init.local_disc


PRESETS = dict(official=OFFICIAL, vgg=VGG, no_local=_no_local, no_attention=NO_ATTENTION,
               no_feature=NO_FEATURE, ema=EMA, smoke=SMOKE)

# Questions of `lljax ablate --preset NAME`: a variant's name, and what it changes. An entry without
# "=" is a preset.
ABLATIONS = dict(data=common.DATA, modules={
    "no local discriminator": ("no_local",),
    "no attention": ("no_attention",),
    # of a baseline with the preset vgg; without it there is nothing to leave out, and it says so
    "no feature loss": ("no_feature",),
})


def get_config(presets: str = "") -> ConfigDict:
    """The complete config, locked.

    Args:
      presets: comma list of names of PRESETS.
    """
    config = common.get_config("enlightengan", ("generator", "global_disc", "local_disc"))
    config.data.source = "unpaired"  # two folders; without any, the demo set
    config.data.crop = 320  # px, of both pictures, each at its own place
    config.data.augment = "flips"

    config.model = ConfigDict(dict(
        width=32,  # channels of the generator at full size; 16 times as many at the bottom
        attention=True,  # the attention map is an input and weighs the skips
        times_residual=True,  # ... and weighs what is added to the picture
        align_corners=True,  # bilinear up-sampling as torch 0.3.1 did it; False as it does now
        remat=False,  # compute a level's inside again instead of keeping it: less memory, slower
        disc_width=64,  # channels of the discriminators' first layer
        global_depth=5,  # layers of stride 2 in the global discriminator
        local_depth=4,  # the same in the local one
    ))
    config.patches = ConfigDict(dict(
        size=32,  # px, side of what the local discriminator sees
        count=6,  # patches of an image, officially 1 + 5
    ))
    config.darken = ConfigDict(dict(  # of the generator's input, in training
        probability=0.5,  # that an image is darkened
        least=2.0,  # it is divided by a number from this ...
        most=4.0,  # ... to this, in hundredths
    ))
    config.vgg16 = ConfigDict(dict(  # of the feature terms
        path=placeholder(str),  # file of VGG16 weights, PyTorch's (any name) or .safetensors
        style="caffe",  # caffe (input BGR 0 to 255, official) | torchvision (ImageNet's scaling)
        layer="relu5_1",  # relu1_1 ... relu5_3
    ))
    config.collapse = ConfigDict(dict(  # when a training is reported as collapsed:
        threshold=0.01,  # a discriminator's loss is less than this above its least value, ...
        steps=200,  # ... 0.25 of the global and 0 of the local one, for so many steps
    ))

    # enabled: in the program at all. weight: its factor in the total; 0.0 only logs the term.
    config.loss = ConfigDict(dict(
        adversarial_global=dict(enabled=True, weight=1.0),  # generator against global_disc
        adversarial_local=dict(enabled=True, weight=1.0),  # generator against local_disc
        feature_global=dict(enabled=False, weight=1.0),  # VGG16 features stay the input's
        feature_local=dict(enabled=False, weight=1.0),  # the same of the patches
        disc_global=dict(enabled=True, weight=1.0),  # global_disc: real against made
        disc_local=dict(enabled=True, weight=1.0),  # local_disc: the same of the patches
    ))

    # the rate falls over the second half; with another number of steps set these as well
    adam = dict(lr=1e-4, b1=0.5, schedule="linear", decay_start=100 * EPOCH,
                decay_end=200 * EPOCH)
    config.phases = ("train",)
    config.phase = ConfigDict(dict(train=dict(
        steps=200 * EPOCH,  # updates of each network
        batch_size=32,  # images an update, over all devices; the authors advise 8 at least
        microbatch=0,  # the whole batch: its statistics are needed
        optim={net: optim.default(**adam)
               for net in ("generator", "global_disc", "local_disc")},
    )))
    return apply_presets(config, presets, PRESETS)
