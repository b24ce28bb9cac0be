"""The `t_spin` block: its ranges, its errors, and the README's table of it."""

import subprocess
import sys

import pytest
from axolotl.utils.dict import DictDefault
from conftest import ROOT

from axolotl_tspin.config import GenerationConfig, TSpinConfig
from axolotl_tspin.errors import TSpinError
from axolotl_tspin.resolve.yaml_file import parse_t_spin


def parse(**block):
    return parse_t_spin(DictDefault({"t_spin": block}))


def test_the_defaults_are_the_papers():
    config = parse()
    assert (config.alpha, config.beta, config.loss, config.iterations) == (1.0, 0.1, "logistic", 5)
    sampling = config.generation
    assert (sampling.temperature, sampling.top_p, sampling.max_new_tokens) == (1.0, 1.0, 256)


@pytest.mark.parametrize(
    ("block", "message"),
    [
        ({"alpah": 1}, r"'alpah' is not a key of `t_spin`; did you mean 'alpha'\?"),
        ({"generation": {"temprature": 1}}, r"`t_spin\.generation`; did you mean 'temperature'\?"),
        ({"zzz": 1}, r"'zzz' is not a key of `t_spin` \(keys: allow_foreign, alpha"),
        ({"alpha": 0}, r"t_spin\.alpha: .*greater than 0"),
        ({"beta": -0.1}, r"t_spin\.beta: .*greater than or equal to 0"),
        ({"loss": "hinge"}, r"t_spin\.loss: .*'logistic' or 'exponential'"),
        ({"iterations": 0}, r"t_spin\.iterations: "),
        ({"iterations": 3, "iteration": 3}, r"not one of the run's 3 iterations \(0 to 2\)"),
        ({"generation": {"top_p": 0}}, r"t_spin\.generation\.top_p: "),
        ({"generation": {"backend": "magic"}}, r"t_spin\.generation\.backend: "),
        ({"keep_models": True}, r"t_spin\.keep_models: `true` is neither a number nor text"),
        ({"history_window": True}, r"t_spin\.history_window: `true`"),
        ({"generation": {"batch_size": False}}, r"generation\.batch_size: `false`"),
        ({"alpha": float("inf")}, r"t_spin\.alpha: .*finite"),
        (
            {"generation": {"backend": "server", "servers": ["http://a/v1", "localhost:8000/v1"]}},
            r"generation\.servers: `localhost:8000/v1` is no base URL; expected .* http://",
        ),
        ({"generation": {"select": "advantage"}}, r"`fraction: 1\.0` takes all prompts"),
    ],
)
def test_a_bad_block_is_refused_by_name(block, message):
    with pytest.raises(TSpinError, match=message):
        parse(**block)


@pytest.mark.parametrize(
    ("model", "prefix"), [(TSpinConfig, ""), (GenerationConfig, "generation.")]
)
def test_the_readme_has_a_row_for_every_key_with_its_default(model, prefix):
    readme = (ROOT / "README.md").read_text()
    for name, field in model.model_fields.items():
        if name in ("resolved", "generation"):
            continue
        row = next((r for r in readme.splitlines() if r.startswith(f"| `{prefix}{name}` |")), None)
        assert row, f"README.md has no row for {prefix}{name}"
        value = field.get_default(call_default_factory=True)
        default = "–" if value is None else str(value)
        default = "the due one" if name == "iteration" else default
        if isinstance(value, bool):
            default = default.lower()
        assert f"| {default} |" in row
        assert field.description in row


def test_importing_the_package_loads_no_torch():
    code = "import sys, axolotl_tspin, axolotl_tspin.config, axolotl_tspin.cli; "
    code += "sys.exit('torch' in sys.modules or 'axolotl' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_the_mathematics_imports_neither_axolotl_nor_trl():
    code = (
        "import sys, axolotl_tspin.collator, axolotl_tspin.trainer; "
        "sys.exit('axolotl' in sys.modules or 'trl' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
