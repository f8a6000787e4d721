"""`config.phase.<phase>.optim.<net>` -> an optax transformation."""

from __future__ import annotations

import optax
from ml_collections import ConfigDict

from lljax.errors import InputError, unknown

OPTIMIZERS = ("adam", "sgd")
SCHEDULES = ("constant", "steps", "linear", "plateau")


def default(**changes) -> ConfigDict:
    """Every knob of one network's optimiser, with the values that the papers share."""
    config = ConfigDict(dict(
        name="adam",  # adam | sgd
        lr=1e-4,  # base learning rate
        b1=0.9,  # Adam's beta 1; momentum of sgd (0.0 = none)
        b2=0.999,  # Adam's beta 2
        eps=1e-8,  # Adam's epsilon, added after the bias correction as torch does
        weight_decay=0.0,  # L2 added to the gradient (torch Adam's meaning), after the clip
        clip=0.0,  # bound on the gradient's global norm; 0.0 = none
        ema=0.0,  # decay of the moving average of the parameters, in [0, 1); 0.0 = none
        schedule="constant",  # constant | steps | linear | plateau
        milestones=(),  # steps: phase steps at which lr is multiplied by `factor`
        factor=0.1,  # steps, plateau: the multiplier
        decay_start=0,  # linear: phase step from which lr falls ...
        decay_end=0,  # linear: ... to zero at this phase step
        patience=10,  # plateau: windows in a row without a new best before lr is multiplied, >= 1
        window=100,  # plateau: updates whose mean total is compared with the best, >= 1
        min_lr=0.0,  # plateau: lr never falls below this
    ))
    config.update(changes)
    return config


def schedule(config: ConfigDict) -> optax.Schedule:
    """Learning rate as a function of the phase step (before any plateau reduction).

    Raises:
      InputError: an unknown schedule, or one without its steps.
    """
    if config.schedule in ("constant", "plateau"):
        return optax.constant_schedule(config.lr)
    if config.schedule == "steps":
        if not config.milestones:
            raise InputError("a schedule of steps needs milestones, e.g. (1000, 2000)")
        scales = {int(step): config.factor for step in config.milestones}
        return optax.piecewise_constant_schedule(config.lr, scales)
    if config.schedule == "linear":
        if config.decay_end <= config.decay_start:
            raise InputError(f"a linear schedule falls from decay_start to decay_end, which are "
                             f"{config.decay_start} and {config.decay_end}; set decay_end to the "
                             "phase's steps")
        return optax.linear_schedule(
            config.lr, 0.0, config.decay_end - config.decay_start, config.decay_start)
    raise unknown("learning-rate schedule", config.schedule, SCHEDULES)


def _check_plateau(config: ConfigDict) -> None:
    """optax takes what turns the schedule round: a rate that rises, or falls on every best."""
    for knob in ("patience", "window"):
        if config[knob] < 1:
            raise InputError(f"a plateau schedule with {knob}={config[knob]}; it must be 1 or more")
    if not 0 < config.factor < 1:
        raise InputError(f"a plateau schedule with factor={config.factor}; it must be between 0 "
                         "and 1")
    if not 0 <= config.min_lr <= config.lr:
        raise InputError(f"a plateau schedule with min_lr={config.min_lr}; it must be between 0 "
                         f"and lr={config.lr}")


def build(config: ConfigDict) -> optax.GradientTransformationExtraArgs:
    """The optimiser of one network.

    The order is torch's: clip, then L2, then Adam, then the learning rate.

    Args:
      config: as `default()`.

    Returns:
      A transformation whose update takes `value`, the total loss (the plateau schedule reads it).

    Raises:
      InputError: an unknown optimiser or schedule, or a moving average that cannot be.
    """
    if not 0 <= config.ema < 1:
        raise InputError(f"a moving average with ema={config.ema}; it must be 0 (none) or more, "
                         "and under 1")
    chain = []
    if config.clip:
        chain.append(optax.clip_by_global_norm(config.clip))
    if config.weight_decay:
        chain.append(optax.add_decayed_weights(config.weight_decay))
    if config.name == "adam":
        chain.append(optax.scale_by_adam(config.b1, config.b2, config.eps))
    elif config.name == "sgd":
        if config.b1:
            chain.append(optax.trace(config.b1))
    else:
        raise unknown("optimiser", config.name, OPTIMIZERS)
    chain.append(optax.scale_by_learning_rate(schedule(config)))
    if config.schedule == "plateau":
        _check_plateau(config)
        chain.append(optax.contrib.reduce_on_plateau(
            factor=config.factor, patience=config.patience, accumulation_size=config.window,
            min_scale=config.min_lr / config.lr))
    return optax.with_extra_args_support(optax.chain(*chain))
