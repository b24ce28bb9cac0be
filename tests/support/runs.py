"""Runs on the example data: their YAML, a policy put in place of a training, a training."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import pytest
import torch
import yaml
from safetensors.torch import save_file

from axolotl_tspin.generation.step import generate
from axolotl_tspin.run.directory import Policy, RunDirectory
from axolotl_tspin.run.fingerprints import policy_fingerprint
from support.data import WORD_PROBLEMS
from support.policies import tiny_llama


@contextlib.contextmanager
def own_environment() -> Iterator[None]:
    """Put the environment back at the end, whatever was set in it.

    `datasets` puts a copy in place of `os.environ` when it maps with several processes.
    """
    with mock.patch.object(os, "environ", os.environ), mock.patch.dict(os.environ):
        yield


def pretend_trained(run: RunDirectory, number: int, base_model: Path | None = None) -> None:
    """Puts a trained policy in place of a training: another tiny Llama, or (with `base_model`) an
    adapter on that."""
    iteration = run.iteration(number)
    if base_model is None:
        tiny_llama(600, seed=number + 5).save_pretrained(iteration.model)
        policy = Policy(str(iteration.model))
    else:
        iteration.model.mkdir(parents=True)
        save_file({"lora_A": torch.ones(2, 2)}, iteration.model / "adapter_model.safetensors")
        (iteration.model / "adapter_config.json").write_text('{"r": 2}')
        policy = Policy(str(base_model), str(iteration.model))
    iteration.check_trained()
    fingerprint = policy_fingerprint(policy, run.fingerprints)
    iteration.mark_trained({"policy": fingerprint, "log_history": []})


def write_yaml(
    folder: Path, policy_dir: Path, rows: int = 12, name: str = "run.yml", **keys
) -> Path:
    cfg = {
        "base_model": str(policy_dir),
        "plugins": ["axolotl_tspin.TSpinPlugin"],
        "rl": "t_spin",
        "t_spin": {
            "iterations": 2,
            "generation": {"max_new_tokens": 12, "batch_size": 4},
        },
        "datasets": [
            {
                "path": str(WORD_PROBLEMS),
                "type": "t_spin.chat_template",
                "split": f"train[:{rows}]",
            }
        ],
        "output_dir": str(folder / "out"),
        "sequence_len": 192,
        "micro_batch_size": 2,
        "gradient_accumulation_steps": 2,
        "num_epochs": 1,
        "learning_rate": 1e-3,
        "optimizer": "adamw_torch",
        "lr_scheduler": "constant",
        "logging_steps": 1,
        "save_strategy": "no",
        "bf16": False,
        "fp16": False,
        "tf32": False,
        "attn_implementation": "sdpa",
        "dataset_num_proc": 1,
        "dataloader_num_workers": 0,
        "dataloader_pin_memory": False,
        "seed": 7,
    }
    cfg |= keys
    if isinstance(cfg["t_spin"], dict):
        # A random policy ends no turn, so all its responses are cut.
        cfg["t_spin"] = {"on_warning": "continue"} | cfg["t_spin"]
    path = folder / name
    path.write_text(yaml.safe_dump({k: v for k, v in cfg.items() if v is not None}))
    return path


def train_here(path: Path) -> None:
    """What `axolotl train` does, in this process."""
    from axolotl.cli.config import load_cfg
    from axolotl.common.datasets import load_datasets
    from axolotl.train import train

    cfg = load_cfg(str(path))
    train(cfg=cfg, dataset_meta=load_datasets(cfg=cfg))


ROWS = 10

T_SPIN = {
    "iterations": 2,
    "alpha": 0.1,
    "gradient_norms": 2,
    "on_warning": "continue",
    "generation": {"max_new_tokens": 12, "batch_size": 4, "select": "advantage", "fraction": 0.5},
}
"""Of `diagnosed_run`."""


def diagnosed_run(folder: Path, policy_dir: Path) -> tuple[Path, RunDirectory]:
    """Two iterations, generated and trained for real, whose second selects by advantage."""
    path = write_yaml(folder, policy_dir, rows=ROWS, t_spin=T_SPIN)
    with pytest.MonkeyPatch.context() as patch, own_environment():
        patch.chdir(folder)
        for _ in range(2):
            generate(path)
            train_here(path)
    return path, RunDirectory(folder / "out")
