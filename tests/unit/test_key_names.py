"""Keys that look misspelt, and the plugin that was forgotten."""

import re

import pytest
import yaml
from support.data import ROOT

from axolotl_tspin.errors import TSpinError
from axolotl_tspin.resolve.key_names import warn_of_misspelt_keys
from axolotl_tspin.resolve.yaml_file import read_keys

PLUGIN = "axolotl_tspin.TSpinPlugin"
EXAMPLES = sorted((ROOT / "examples" / "yaml").glob("*.yml"))


def said(caplog, raw: dict) -> list[str]:
    caplog.clear()
    warn_of_misspelt_keys(raw)
    return [record.getMessage() for record in caplog.records]


@pytest.mark.parametrize(
    ("key", "meant"),
    [
        ("learing_rate", "learning_rate"),
        ("gradient_accumulation_step", "gradient_accumulation_steps"),
        ("tspin", "t_spin"),
        ("t-spin", "t_spin"),
        ("revision_of_modell", "revision_of_model"),
        ("liger_rms_nrom", "liger_rms_norm"),
    ],
)
def test_a_misspelt_key_is_named_with_the_right_one(caplog, key, meant):
    raw = {"plugins": [PLUGIN, "axolotl.integrations.liger.LigerPlugin"], key: 1}
    (warning,) = said(caplog, raw)
    assert f"`{key}`" in warning and f"`{meant}`" in warning


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_the_examples_are_spelt_rightly(caplog, path):
    assert said(caplog, yaml.safe_load(path.read_text())) == []


def test_keys_like_nothing_are_the_users_own(caplog):
    """Such as notes, anchors of YAML and what a launcher of theirs reads."""
    raw = {"plugins": [PLUGIN], "x-common": {}, "my_notes": "…", "model_type": "AutoModel", 3: 4}
    assert said(caplog, raw) == []


@pytest.mark.parametrize(
    ("plugins", "expected"),
    [
        (None, f"add `plugins: [{PLUGIN}]`"),
        ([], f"add `plugins: [{PLUGIN}]`"),
        (["a.B", "c.D"], f"add `plugins: [a.B, c.D, {PLUGIN}]`"),
        (PLUGIN, f"`plugins` is `{PLUGIN}`; expected a list, such as `plugins: [{PLUGIN}]`"),
    ],
)
def test_a_forgotten_plugin_is_named(make_yaml, plugins, expected):
    path = make_yaml(plugins=plugins)
    with pytest.raises(TSpinError, match=re.escape(expected)):
        read_keys(path)


@pytest.mark.parametrize("plugins", [[PLUGIN], ["a.B", "axolotl_tspin.plugin.plugin.TSpinPlugin"]])
def test_a_plugin_that_is_there_is_found(make_yaml, plugins):
    assert read_keys(make_yaml(plugins=plugins))["plugins"] == plugins


class CountedPlugin:
    """A plugin whose constructor must run once, when Axolotl makes it."""

    made = 0

    def __init__(self) -> None:
        CountedPlugin.made += 1

    def get_input_args(self) -> str:
        return "axolotl_tspin.plugin.args.TSpinArgs"


def test_looking_at_the_keys_makes_no_plugin():
    warn_of_misspelt_keys({"plugins": [f"{__name__}.CountedPlugin", "liger.LigerPlugin"]})
    assert CountedPlugin.made == 0
