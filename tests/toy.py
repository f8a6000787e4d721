"""A fifth method, outside the package: everything the interface offers in 100 lines.

Phase "first" trains a BatchNorm network with an EMA; phase "second" freezes it and trains two
networks, the second on what the first handed on, the first towards what the frozen one makes of the
pictures; every image is disturbed by its own noise.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from lljax import method, optim, parallel
from lljax.config import apply_presets
from lljax.configs import common


def get_config(presets=""):
    config = common.get_config("tests.toy", ("base", "gain", "critic"))
    config.phases = ("first", "second")
    config.phase = ConfigDict({
        "first": dict(steps=3, batch_size=8, microbatch=0, optim=ConfigDict(dict(
            base=optim.default(lr=1e-2, ema=0.5)))),
        "second": dict(steps=3, batch_size=8, microbatch=0, optim=ConfigDict(dict(
            gain=optim.default(lr=1e-2), critic=optim.default(lr=1e-2, name="sgd"))))})
    config.data.resize = 16
    config.data.augment = "dihedral"
    config.log.every = 1
    config.checkpoint.every = 1
    config.log.samples = 2
    config.loss = ConfigDict({
        "l1": dict(enabled=True, weight=1.0), "match": dict(enabled=True, weight=0.5),
        "score": dict(enabled=True, weight=0.1), "extra": dict(enabled=False, weight=1.0)})
    return apply_presets(config, presets, {
        "slow": {"checkpoint": {"every": 1000}},
        "second": {"phases": ("second",), "loss": {"l1": {"enabled": False}}}})


class Base(nn.Module):
    @nn.compact
    def __call__(self, x, train):
        x = nn.Conv(4, (3, 3), use_bias=False)(x)  # BatchNorm would cancel a bias
        x = nn.BatchNorm(use_running_average=not train, axis_name=parallel.AXIS if train else None,
                         momentum=0.9)(x)
        return x + nn.Conv(3, (1, 1))(nn.relu(x))[..., :1]


class Gain(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.softplus(nn.Conv(3, (3, 3))(x))


class Method(method.Method):
    halo = None
    multiple = 4

    def __init__(self, config):
        super().__init__(config)
        self.base, self.gain, self.critic = Base(), Gain(), Gain()

    def init(self, key, batch):
        low, keys = batch["low"], jax.random.split(key, 3)
        return {"base": self.base.init(keys[0], low, True), "gain": self.gain.init(keys[1], low),
                "critic": self.critic.init(keys[2], low)}

    def noisy(self, batch):
        noise = jax.vmap(lambda key, x: jax.random.normal(key, x.shape))(batch["key"], batch["low"])
        return batch["low"] + 0.01 * noise

    def frozen_features(self, phase):
        return self.blurred if phase == "second" else None

    def blurred(self, nets, image):
        return {"blurred": self.base.apply(nets["base"], image, False)[..., :3]}

    def train_step(self, state, batch, weights, *, phase):
        if phase == "first":
            def base_loss(params, part):
                out, new = self.base.apply({**state.nets["base"], "params": params["base"]},
                                           self.noisy(part), True, mutable=["batch_stats"])
                terms = {"l1": jnp.abs(out[..., :3] - part["high"]).mean((1, 2, 3))}
                return terms, {"batch_stats": {"base": new["batch_stats"]}}
            state, scalars, _ = self.update(state, ("base",), base_loss, batch, weights,
                                            phase=phase)
            return state, scalars

        def gain_loss(params, part):
            out = self.gain.apply({"params": params["gain"]}, self.noisy(part))
            handed = jax.lax.stop_gradient(out)
            found = part.get("features") or {
                role: self.blurred(state.nets, part[role]) for role in ("low", "high")}
            target = part["high"] + found["high"]["blurred"] - found["low"]["blurred"]
            return {"match": ((out - target) ** 2).mean((1, 2, 3))}, {"handed": handed}

        state, scalars, aux = self.update(state, ("gain",), gain_loss, batch, weights, phase=phase)

        def critic_loss(params, part):
            out = self.critic.apply({"params": params["critic"]}, part["handed"])
            return {"score": ((out - part["low"]) ** 2).mean((1, 2, 3))}, None

        state, more, _ = self.update(state, ("critic",), critic_loss, {**batch, **aux}, weights,
                                     phase=phase)
        return state, {**scalars, **more}

    def estimate(self, nets, low, key):
        return {"gain": self.gain.apply(nets["gain"], low)}

    def apply(self, nets, low, maps):
        return low * maps["gain"]
