"""Settings of a trained model, changed where it is used."""

import pytest
from ml_collections import ConfigDict

from lljax import config as config_lib
from lljax.errors import InputError


def make():
    return ConfigDict(dict(
        model=dict(depth=7, gain=0.5, padding="zero", wide=False, sizes=(1, 2), file=None),
        method="foo")).lock()


def test_values_are_read_as_the_type_of_the_present_one():
    config = make()
    changed = config_lib.change(config, [
        "model.depth=3", "model.gain=2", "model.padding=replicate", "model.wide=true",
        "model.sizes=[3, 4]", "model.file=a=b.pth", "model.depth=5"])
    assert changed.model.to_dict() == dict(depth=5, gain=2.0, padding="replicate", wide=True,
                                           sizes=(3, 4), file="a=b.pth")
    assert isinstance(changed.model.gain, float) and changed.is_locked
    assert config_lib.to_json(config) == config_lib.to_json(make())
    assert config_lib.to_json(config_lib.change(config, [])) == config_lib.to_json(config)


def test_a_config_from_a_checkpoint_can_be_changed():
    config = config_lib.from_json(config_lib.to_json(config_lib.default("zerodce")))
    changed = config_lib.change(config, ["model.iterations=4", "data.low=dark",
                                         'phases=["train"]'])
    assert config_lib.differences(config, changed) == [
        "data.low: None -> dark", "model.iterations: 8 -> 4"]


@pytest.mark.parametrize("text, message", [
    ("model.depht=3", 'unknown config key "model.depht". Did you mean "model.depth"?'),
    ("modle.depth=3", 'Did you mean "model"?'),
    ("model.depth", "write KEY=VALUE"),
    ("=3", "write KEY=VALUE"),
    ("model=3", "model is a group; set one of model.depth, model.file"),
    ("method.name=3", "method is one value"),
    ("model.depth=3.5", "'3.5' is not a whole number"),
    ("model.gain=lots", "'lots' is not a number"),
    ("model.gain=nan", "'nan' is not a number"),
    ("model.wide=maybe", "'maybe' is not true or false"),
    ("model.sizes=1,2", "is not a list such as [1, 2]"),
])
def test_mistakes_are_one_line(text, message):
    with pytest.raises(InputError) as caught:
        config_lib.change(make(), [text])
    assert message in str(caught.value) and "\n" not in str(caught.value)
