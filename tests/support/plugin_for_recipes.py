"""Plugin of the recipes' tests: trains where there is no GPU, and records what was computed.

It changes no key of the YAML. Axolotl has no keys for what it changes.
"""

import atexit
import json
import os
from functools import partial
from pathlib import Path
from typing import Any

from accelerate.state import PartialState
from accelerate.utils import DistributedType
from axolotl.integrations.base import BasePlugin
from transformers import TrainerCallback

RECORDS = "RECIPE_RECORDS"
"""Variable with the folder for records, a file per process."""


class RecipePlugin(BasePlugin):
    """Trains on CPUs, under DeepSpeed on several ranks; records the types of activations."""

    def __init__(self) -> None:
        super().__init__()
        self._record: dict[str, Any] = {"activations": {}}
        file = Path(os.environ[RECORDS]) / f"{os.getpid()}.json"
        atexit.register(lambda: file.write_text(json.dumps(self._record)))

    def register(self, cfg: dict) -> None:
        """T-SPIN has removed `deepspeed` by now for a step that samples."""
        if cfg.get("deepspeed"):
            # accelerate knows no backend for DeepSpeed on CPUs; each time that it looks, it would
            # go on without one.
            os.environ["ACCELERATE_USE_DEEPSPEED"] = "true"
            os.environ["ACCELERATE_TORCH_DEVICE"] = "cpu"
            PartialState._prepare_backend = lambda *args: ("gloo", DistributedType.NO)
            PartialState()

    def load_datasets(self, cfg: Any, preprocess: bool = False) -> None:
        """The first hook after Axolotl has set `device_map`, to GPUs; the data are left to it."""
        if cfg.device_map:
            cfg.device_map = {"": "cpu"}

    def get_training_args(self, cfg: Any) -> dict[str, Any]:
        device: dict[str, Any] = {"use_cpu": True, "tf32": None}  # a CPU has none
        if cfg.deepspeed:
            return device | {"accelerator_config": {"use_configured_state": True}}
        return device

    def post_model_load(self, cfg: Any, model: Any) -> None:
        """Record the types that a forward pass computes, in training and in sampling."""
        for name, module in model.named_modules():
            kind = type(module).__name__
            if kind == "Embedding" or kind.endswith(("RMSNorm", "Attention", "DecoderLayer")):
                place = name.split("model.")[-1]  # the same with an adapter as without
                module.register_forward_hook(partial(self._activation, place))

    def add_callbacks_post_trainer(self, cfg: Any, trainer: Any) -> list[TrainerCallback]:
        return [_Observer(trainer, self._record)]

    def _activation(self, name: str, module: Any, inputs: Any, output: Any) -> None:
        output = output[0] if isinstance(output, tuple) else output
        types = self._record["activations"].get(name, [])
        self._record["activations"][name] = sorted({*types, str(output.dtype)})


class _Observer(TrainerCallback):
    """Records what a training took from the YAML, at its first step."""

    def __init__(self, trainer: Any, record: dict[str, Any]) -> None:
        self._trainer = trainer
        self._record = record

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        trainer, policy = self._trainer, self._trainer.accelerator.unwrap_model(self._trainer.model)
        optimizer = trainer.optimizer
        while hasattr(optimizer, "optimizer"):  # of accelerate and DeepSpeed
            optimizer = optimizer.optimizer
        self._record["training"] = {
            "deepspeed": type(trainer.model_wrapped).__name__ == "DeepSpeedEngine",
            "zero_stage": getattr(trainer.model_wrapped, "zero_optimization_stage", int)(),
            "ranks": args.world_size,
            "precision": trainer.accelerator.mixed_precision,
            "optimizer": type(optimizer).__name__.lower(),
            "schedule": args.lr_scheduler_type,
            "checkpointing": policy.is_gradient_checkpointing,
            "layout": trainer.layout.choice.layout,
            "four_bit": bool(getattr(policy, "is_loaded_in_4bit", False)),
        }
