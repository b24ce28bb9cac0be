"""A plugin of the tests: several ranks on CPUs, where Axolotl would place rank n on GPU n."""

from typing import Any

from axolotl.integrations.base import BasePlugin


class CPURanksPlugin(BasePlugin):
    def load_datasets(self, cfg: Any, preprocess: bool = False) -> None:
        """The first hook after Axolotl has set `device_map`; the data are left to Axolotl."""
        cfg.device_map = {"": "cpu"}
