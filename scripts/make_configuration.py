"""Write docs/configuration.md from the code: python scripts/make_configuration.py [--check]

With --check nothing is written, and the exit status is 1 if the page is not current.
"""

import argparse
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

from pydantic import BaseModel

from axolotl_tspin.config import GenerationConfig, TSpinConfig
from axolotl_tspin.resolve import refusals

PAGE = Path(__file__).parent.parent / "docs" / "configuration.md"
NOT_SHOWN = ("resolved", "generation")
"""Fields of `TSpinConfig` that are internal, or that have a separate table."""

INTRODUCTION = """\
<!-- Made by scripts/make_configuration.py; edit that script or the code that it reads. -->

# Configuration

T-SPIN is an Axolotl run with three additions: the plugin, `rl: t_spin`, and the block `t_spin`.

```yaml
plugins:
  - axolotl_tspin.TSpinPlugin
rl: t_spin
t_spin:
  alpha: 1.0
  beta: 0.1
  iterations: 5
  generation: {backend: transformers, temperature: 1.0, max_new_tokens: 256}
```

`base_model`, `output_dir`, `datasets` and `sequence_len` are required.
Every other key of Axolotl keeps its meaning, except those listed below.
The keys of a `datasets` entry are in [data.md](data.md).

A key that does not exist is an error that names the nearest one.
`true` and `false` are errors where a number or a text is expected.
A run without `rl: t_spin` is left alone, whether the plugin is listed or not.
A block `t_spin` in such a run gives a warning.
"""

METHODS = """\
## Methods

`t_spin.method` trains the paper's comparisons from the same YAML, data, run directory and engines.

| `method` | reward of a response z | loss |
| --- | --- | --- |
| `t_spin` | α·log π_θ(z\\|x) | ℓ(r(y) − r(y′)) + β·ℓ(r(y′) − r(y0)), eq. 7 |
| `no_history` | the same | without the second term ("w/o H-A") |
| `spin` | α·[log π_θ(z\\|x) − log π_θt(z\\|x)] | ℓ(r(y) − r(y′)), \
eq. 3; α is SPIN's λ, 0.1 in its paper: set `alpha: 0.1` |
| `t_spin_ref` | as `spin` | as `t_spin`, eq. 9 |

π_θt is the policy that the iteration starts from.
π_θt is never in memory together with the policy in training.
The generation step computes its log-probabilities of y, y′ and y0 once, with transformers whatever
the engine, and training reads them as columns.
The columns carry the policy's fingerprint and the triplets' checksum; others are refused.
`spin` is TRL's DPO loss with its `beta` as `alpha`, on the same tokens to rounding (a test holds
that).

`history_window: 1` adds the triplets of the iteration before to each training, as SPIN's authors
mix its pairs.
A method with a reference takes their log-probabilities under the current π_θt.
Rows that `held_out` or `val_set_size` hold out are in none of them.

SFT is Axolotl's own: use the same YAML without `rl: t_spin`, `t_spin:` and the `t_spin.` in `type`.
"""


def rows_of_keys(model: type[BaseModel], prefix: str = "") -> Iterator[list[str]]:
    """Yield a row for every key of a block: key, default, meaning."""
    for name, field in model.model_fields.items():
        if name in NOT_SHOWN:
            continue
        value = field.get_default(call_default_factory=True)
        default = "–" if value is None else str(value)
        default = default.lower() if isinstance(value, bool) else default
        default = "the due one" if name == "iteration" else default
        yield [f"`{prefix}{name}`", default, str(field.description)]


def table(head: list[str], rows: Iterable[list[str]]) -> str:
    lines = [head, ["---"] * len(head)]
    lines += [[cell.replace("|", "\\|") for cell in row] for row in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def rows_of_refusals() -> Iterator[list[str]]:
    """Yield a row for every reason, with the keys that share it."""
    keys: dict[str, list[str]] = {}
    for key, reason in refusals.REFUSED.items():
        keys.setdefault(reason, []).append(f"`{key}`")
    for key, reason in refusals.PARALLEL.items():
        keys.setdefault(reason, []).append(f"`{key}` over 1")
    for reason, names in keys.items():
        yield [", ".join(names), reason]
    changes = ", ".join(refusals.CHANGES_BASE)
    yield [
        f"`peft_init_lora_weights: {changes}`, `peft.loftq_config`",
        "it changes the base model, but T-SPIN continues its adapter on the unchanged base model",
    ]
    yield ["`accelerator_config.dispatch_batches`", "a batch holds more than tensors"]
    others = [f"{beginning}*" for beginning in refusals.OTHER_METHODS]
    yield [
        ", ".join(f"`{key}`" for key in [*others, *refusals.OTHER_METHODS_KEYS]),
        "other values of `rl` read it; T-SPIN's settings are in the block `t_spin`",
    ]


def page() -> str:
    """Make the text of docs/configuration.md."""
    head = ["key", "default", "meaning"]
    without_effect = ", ".join(f"`{key}`" for key in refusals.WITHOUT_EFFECT)
    parts = [
        INTRODUCTION,
        "## The block `t_spin`\n",
        table(head, rows_of_keys(TSpinConfig)) + "\n",
        "## Sampling: `t_spin.generation`\n",
        table(head, rows_of_keys(GenerationConfig, "generation.")) + "\n",
        "Engines and clusters are described in [generation.md](generation.md).\n",
        METHODS,
        "## Axolotl's keys that are refused\n",
        "Each key is an error before anything is computed, with the reason and a remedy.\n",
        table(["key", "because"], rows_of_refusals()) + "\n",
        "`t_spin.gradient_norms` is refused with `deepspeed`, `fsdp`, `fsdp_config` and `fp16`.\n"
        "`accelerator_config.even_batches: false` is refused on several ranks: they would wait "
        "for each other.\n",
        "## Axolotl's keys without effect\n",
        f"{without_effect}: kernels of the cross-entropy loss, which the triplet loss does not "
        "use.\nThe log warns of them.\n",
    ]
    return "\n".join(parts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing; 1 if not current")
    if not parser.parse_args().check:
        PAGE.write_text(page(), encoding="utf-8")
    elif not PAGE.exists() or PAGE.read_text(encoding="utf-8") != page():
        sys.exit(f"docs/{PAGE.name} is not current: run python scripts/make_configuration.py")


if __name__ == "__main__":
    main()
