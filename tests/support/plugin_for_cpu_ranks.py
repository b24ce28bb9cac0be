"""Plugins of the tests, for CPUs: where Axolotl or transformers would ask for a GPU."""

from typing import Any

from axolotl.integrations.base import BasePlugin


class CPURanksPlugin(BasePlugin):
    """Several ranks on CPUs, where Axolotl would place rank n on GPU n."""

    def load_datasets(self, cfg: Any, preprocess: bool = False) -> None:
        """The first hook after Axolotl has set `device_map`; the data are left to Axolotl."""
        cfg.device_map = {"": "cpu"}


class CPUPlugin(BasePlugin):
    """Lets transformers train in bfloat16 on a CPU, which has no TF32.

    Axolotl has no key for it.
    """

    def get_training_args(self, cfg: Any) -> dict[str, Any]:
        return {"use_cpu": True, "tf32": None}
