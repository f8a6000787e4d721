"""Retinex-Net (Wei et al., BMVC 2018, arXiv:1808.04560), as the official program trains it.

Data: pairs of low- and normal-light pictures; officially LOL-v1 (485) and 1,000 synthetic pairs.
Without folders it trains on the built-in demo set.

Command:
  python train.py --config configs/retinexnet.py --workdir runs/retinexnet \
    --config.data.source=pairs --config.data.low=LOW --config.data.high=HIGH
  (with the published sets: --config.data.source=lol_v1+retinex_synthetic --config.data.root=DIR)
Presets (configs/retinexnet.py:NAME, a comma list, later wins):
  official_code, paper, torch_port, released: whose numbers; replicate: borders
  joint, decom_only, relight_only, finetune: what is trained together; plateau: the learning rate
  notes_resize, notes_transposed, notes_joint, notes_no_enhance: four runs to compare
  smoke, demo
Hardware, wall time and score: 2 x 300 steps took 11 min of 2 shared CPU cores and reached
16.19 dB / 0.547 SSIM on 41 pairs of SICE frames, less than a gamma curve (docs/retinexnet.md). The
full length is not yet measured.
"""

from ml_collections import ConfigDict

from lljax import denoise, optim
from lljax.config import apply_presets
from lljax.configs import common

EPOCH = 92  # updates of 16 pairs over 485 + 1,000 pairs, the last ones left out


def _optim(net, **changes):
    """Adam with the official table: 1e-3, from epoch 20 on 1e-4."""
    options = dict(lr=1e-3, schedule="steps", milestones=(20 * EPOCH,), factor=0.1) | changes
    return {net: optim.default(**options)}


# What the default config already says, by name.
OFFICIAL_CODE = dict(
    data=dict(crop=48),
    model=dict(origin="tensorflow", skips="add", upsampling="resize", padding="zero"),
    loss=dict(
        reflectance=dict(weight=0.01, fix_high=False),
        smoothness_low=dict(weight=0.1, edge=10.0, form="code"),
        smoothness_high=dict(weight=0.1, edge=10.0, form="code"),
        smoothness_enhanced=dict(weight=3.0, edge=10.0, form="code"),
    ),
)

# Sections 3 and 4 of the paper: lambda_ir 0.001, lambda_is 0.1, lambda_g 10, patches of 96 px,
# and both networks fine-tuned together with SGD at the end, whose length and rate it leaves
# unsaid (here a tenth of a phase at 1e-4). One weight for every smoothness term.
PAPER = dict(
    phases=("decom", "relight", "finetune"),
    data=dict(crop=96),
    loss=dict(
        reflectance=dict(weight=0.001),
        smoothness_enhanced=dict(weight=0.1),
    ),
)

# github.com/aasharma90/RetinexNet_PyTorch as torch 1.1 ran it, which its weights come from.
TORCH_PORT = dict(
    data=dict(crop=96),
    model=dict(origin="torch", skips="concat", upsampling="resize", padding="zero"),
    loss=dict(
        reflectance=dict(fix_high=True),
        smoothness_low=dict(form="port"),
        smoothness_high=dict(form="port"),
        smoothness_enhanced=dict(form="port"),
    ),
)

# The smoothness that the released TensorFlow weights were trained with, as the graph stored
# beside them has it.
RELEASED = dict(loss=dict(
    smoothness_low=dict(form="released", edge=5.0),
    smoothness_high=dict(form="released", edge=5.0),
    smoothness_enhanced=dict(form="released", edge=1.0, weight=1.0),
))

REPLICATE = dict(model=dict(padding="replicate"))

JOINT = dict(phases=("joint",))

# Illumination set to 1: the reflectance is the result, and there is no Enhance-Net.
DECOM_ONLY = dict(
    phases=("decom",),
    model=dict(adjust="ones"),
    loss=dict(enhancement=dict(enabled=False), smoothness_enhanced=dict(enabled=False)),
)

# Enhance-Net on a Decom-Net from elsewhere: needs config.init.decom.
RELIGHT_ONLY = dict(
    phases=("relight",),
    loss={name: dict(enabled=False) for name in (
        "reconstruction_low", "reconstruction_high", "mutual_low", "mutual_high", "reflectance",
        "smoothness_low", "smoothness_high")},
)

FINETUNE = dict(phases=("decom", "relight", "finetune"))


def _each_optimizer(config, **changes):
    for phase in config.phase.values():
        for net in phase.optim.values():
            net.update(changes)


def _plateau(config):
    _each_optimizer(config, schedule="plateau", window=EPOCH, patience=10, min_lr=1e-6)


def _notes(*more):
    """A run of the notes: the PyTorch port on a torch that does replicate, 200 epochs at 1e-4."""
    def change(config):
        for preset in (TORCH_PORT, REPLICATE, *more):
            config.update(preset)
        for phase in config.phase.values():
            phase.steps = 200 * EPOCH
        _each_optimizer(config, lr=1e-4, schedule="constant")
    return change


# The real networks and terms, seconds on two cores.
SMOKE = dict(
    data=dict(crop=32),
    eval=dict(limit=2),
    log=dict(every=1),
    checkpoint=dict(every=1),
    phase={name: dict(steps=2, batch_size=8)
           for name in ("decom", "relight", "joint", "finetune")},
)


# A visible result in minutes on two cores.
def _demo(config):
    config.update(dict(data=dict(crop=48), log=dict(samples_every=100)))
    for phase in config.phase.values():
        phase.update(dict(steps=150, batch_size=8))
    _each_optimizer(config, milestones=(100,))


PRESETS = dict(
    official_code=OFFICIAL_CODE, paper=PAPER, torch_port=TORCH_PORT, released=RELEASED,
    replicate=REPLICATE, joint=JOINT, decom_only=DECOM_ONLY, relight_only=RELIGHT_ONLY,
    finetune=FINETUNE, plateau=_plateau,
    notes_resize=_notes(), notes_transposed=_notes(dict(model=dict(upsampling="transposed"))),
    notes_joint=_notes(JOINT), notes_no_enhance=_notes(DECOM_ONLY), smoke=SMOKE, demo=_demo)

# Questions of `lljax ablate --preset NAME`: a variant's name, and what it changes. An entry without
# "=" is a preset.
ABLATIONS = dict(data=common.DATA, modules={
    "resize": ("notes_resize",),
    "transposed": ("notes_transposed",),
    "joint": ("notes_joint",),
    "no Enhance-Net": ("notes_no_enhance",),
})


def get_config(presets: str = "") -> ConfigDict:
    """The complete config, locked.

    Args:
      presets: comma list of names of PRESETS.
    """
    config = common.get_config("retinexnet", ("decom", "relight"))
    config.data.crop = 48  # px; the paper says 96, the official program takes 48
    config.data.augment = "dihedral"

    config.model = ConfigDict(dict(
        width=64,  # channels of the hidden layers
        depth=5,  # 3 x 3 layers with ReLU in Decom-Net
        upsampling="resize",  # of Enhance-Net: resize (nearest, convolution) | transposed
        skips="add",  # of Enhance-Net: add (official) | concat (PyTorch port)
        padding="zero",  # outside the picture: zero | replicate
        origin="tensorflow",  # stride-2 padding and initial values of: tensorflow | torch
        adjust="relight",  # adjusted illumination: relight (Enhance-Net) | ones (none)
    ))
    config.denoise = denoise.default()  # of the reflectance, when a picture is enhanced

    # enabled: in the program at all. weight: its factor in the total; 0.0 only logs the term.
    # form of a smoothness: code (official program) | port (PyTorch port) | released (three
    # scales, as the released weights were trained). edge: lambda_g, how much edges of the
    # reflectance excuse edges of the illumination.
    config.loss = ConfigDict(dict(
        reconstruction_low=dict(enabled=True, weight=1.0),  # R_low I_low is the low picture
        reconstruction_high=dict(enabled=True, weight=1.0),  # R_high I_high is the reference
        mutual_low=dict(enabled=True, weight=0.001),  # R_high I_low is the low picture
        mutual_high=dict(enabled=True, weight=0.001),  # R_low I_high is the reference
        reflectance=dict(  # R_low and R_high are one
            enabled=True,
            weight=0.01,  # the paper says 0.001
            fix_high=False,  # R_high is the target alone and gets no gradient here
        ),
        smoothness_low=dict(enabled=True, weight=0.1, edge=10.0, form="code"),
        smoothness_high=dict(enabled=True, weight=0.1, edge=10.0, form="code"),
        enhancement=dict(enabled=True, weight=1.0),  # R_low I_adjusted is the reference
        smoothness_enhanced=dict(enabled=True, weight=3.0, edge=10.0, form="code"),
    ))

    # decom, relight: one network each, the other frozen. joint: both, end to end, from scratch.
    # finetune: both, end to end, after the phases.
    config.phases = ("decom", "relight")
    both = _optim("decom") | _optim("relight")
    sgd = dict(name="sgd", lr=1e-4, schedule="constant")
    config.phase = ConfigDict({
        name: dict(
            steps=steps,  # updates
            batch_size=16,  # pairs an update, over all devices
            microbatch=-1,  # pairs a forward pass; -1 = 1 on CPU and all elsewhere, 0 = all
            optim=nets)
        for name, steps, nets in (
            ("decom", 100 * EPOCH, _optim("decom")),
            ("relight", 100 * EPOCH, _optim("relight")),
            ("joint", 100 * EPOCH, both),
            ("finetune", 10 * EPOCH, _optim("decom", **sgd) | _optim("relight", **sgd)))})
    return apply_presets(config, presets, PRESETS)
