"""The knobs that every training has; each config file adds its method's own."""

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

# `lljax ablate --preset data`: what training on less, or on dark pictures alone, costs.
DATA = {
    "half of the pictures": ("data.share=0.5",),
    "a quarter": ("data.share=0.25",),
    "a tenth": ("data.share=0.1",),
    "no over-exposed ones": ("data.brightest=0.6",),
    "dark ones only": ("data.brightest=0.25",),
}


def get_config(method: str, nets: tuple[str, ...]) -> ConfigDict:
    """Run-wide knobs with their defaults, unlocked.

    Args:
      method: a file of lljax/methods/, or a dotted module name.
      nets: the method's networks, for `config.init`.
    """
    config = ConfigDict()
    config.method = method
    config.seed = 0  # initial weights, data order, augmentation, every random draw
    config.precision = "default"  # of matmuls: default (TF32 on GPU, bf16 on TPU) | high | highest
    config.steps_per_call = 1  # training steps per dispatch; more hides dispatch on fast devices
    config.resume = placeholder(str)  # workdir whose last checkpoint a new run continues from
    config.init = ConfigDict({net: placeholder(str) for net in nets})  # workdir or weights file

    config.data = ConfigDict(dict(
        source="demo",  # demo | folder (low only) | pairs | unpaired | lol_v1 ...; "a+b" = both
        low=placeholder(str),  # folder of low-light pictures
        high=placeholder(str),  # folder of references (pairs) or of well-lit pictures (unpaired)
        root=placeholder(str),  # folder that published sets were unpacked into; None = prepared
        prepared=placeholder(str),  # where they are prepared; None = LLJAX_DATA or a user cache
        share=1.0,  # of its pictures, taken evenly through it, in (0, 1]
        brightest=1.0,  # pictures of a mean luma above this, in (0, 1], are left out
        resize=0,  # side in px that pictures are resized to, aspect ignored (LANCZOS); 0 = not
        crop=0,  # side in px of a random crop; 0 = whole picture (then all need one size)
        augment="none",  # none | flip (left-right) | flips (and up-down) | dihedral (8 symmetries)
        permute_channels=False,  # red, green and blue in random order, alike in a pair: no cast
        threads=2,  # decoding threads
        # GiB of decoded pictures kept in memory, and as much of what is computed once a picture
        # (where a phase looks with a frozen network at pictures that are always the same)
        cache_gib=1.0,
    ))
    config.eval = ConfigDict(dict(
        every=0,  # steps between evaluations while training; 0 = never
        source="demo",  # demo | a published set of pairs (its test split) | pairs; may be joined
        low=placeholder(str),  # pairs: folder of low-light pictures
        high=placeholder(str),  # pairs: folder of references
        limit=0,  # evaluate only the first n pictures; 0 = all
    ))
    config.log = ConfigDict(dict(
        every=10,  # steps between lines of progress and metrics.jsonl
        samples_every=0,  # steps between before/after grids in samples/; 0 = at the end only
        samples=4,  # pictures in the grid, from config.eval's source
        wandb="",  # Weights & Biases beside TensorBoard: "" = off | online | offline (sync later)
        project="lljax",  # of Weights & Biases
        group="",  # of Weights & Biases: runs that are shown together, e.g. an ablation's
    ))
    config.checkpoint = ConfigDict(dict(
        every=1000,  # steps between checkpoints; one is always written at the end of a phase
        keep=1,  # newest checkpoints kept, beside the best one
        best="ssim",  # metric of config.eval that says which checkpoint is best
    ))
    return config
