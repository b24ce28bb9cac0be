"""Settings that an iteration was made with, and how the YAML differs from them now.

They are read from the iteration's own files: what it was sampled with from the metadata of its
triplets, the rest from `train.yml`. No torch, no axolotl.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from axolotl_tspin.errors import TSpinError
from axolotl_tspin.run.directory import Due, Iteration, RunDirectory
from axolotl_tspin.run.tables import read_metadata

METHOD = ("method", "loss", "alpha", "beta", "history_window")
SAMPLING = ("max_new_tokens", "temperature", "top_p", "select", "fraction")
TRAINING = (
    "seed",
    "learning_rate",
    "num_epochs",
    "max_steps",
    "optimizer",
    "lr_scheduler",
    "weight_decay",
    "micro_batch_size",
    "gradient_accumulation_steps",
    "batch_size",
)
DEFAULT_SEED = 42


def changed_settings(run: RunDirectory, due: Due, cfg: Mapping[str, Any]) -> str:
    """Describe the settings that have changed since the iteration before the due one, or since
    its own training began.

    Args:
        cfg: the YAML, resolved for the due step.

    Returns:
        A line such as "since iteration 0: t_spin.alpha 1.0 → 0.5"; "" if nothing has changed.
    """
    if due.step == "done":
        return ""
    own = run.iteration(due.iteration)
    now, before, since = settings_of(cfg), {}, f"since iteration {due.iteration - 1}"
    resumes = cfg.get("auto_resume_from_checkpoints") is not False
    if due.step == "train" and resumes and own.last_checkpoint():
        before, since = made_with(own), f"since the checkpoint of iteration {due.iteration}"
    elif due.iteration:
        before = made_with(run.iteration(due.iteration - 1))
    if due.step == "train":  # its responses are sampled
        before = {key: value for key, value in before.items() if ".generation." not in key}
    changes = [
        f"{key} {_shown(before[key])} → {_shown(now[key])}"
        for key in now
        if key in before and not _same(before[key], now[key])
    ]
    return f"{since}: {', '.join(changes)}" if changes else ""


def made_with(iteration: Iteration) -> dict[str, Any]:
    """The settings that an iteration was sampled and trained with, by the YAML's keys.

    Those that its files do not tell are left out, as after an import.
    """
    try:
        made = settings_of(yaml.safe_load(iteration.training_config.read_text(encoding="utf-8")))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, yaml.YAMLError):
        made = {}
    try:
        sampled = read_metadata(iteration.triplets("train"), verify=False)
    except TSpinError:
        sampled = {}
    return made | {f"t_spin.generation.{k}": sampled[k] for k in SAMPLING if k in sampled}


def settings_of(cfg: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a resolved YAML that decide what responses and policies mean. Where our own
    ones are missing, an earlier version wrote it."""
    block = cfg["t_spin"]
    settings = _present("t_spin", block, METHOD)
    settings |= _present("t_spin.generation", block.get("generation") or {}, SAMPLING)
    settings |= {key: cfg.get(key) for key in TRAINING}
    if settings["seed"] is None:
        settings["seed"] = DEFAULT_SEED
    return settings


def _present(name: str, block: Mapping[str, Any], keys: Sequence[str]) -> dict[str, Any]:
    return {f"{name}.{key}": block[key] for key in keys if key in block}


def _same(one: Any, other: Any) -> bool:
    """Compare values; `1e-5`, which YAML reads as text, is the number."""
    try:
        return float(one) == float(other)
    except (TypeError, ValueError):
        return one == other


def _shown(value: Any) -> str:
    return "(not set)" if value is None else str(value)
