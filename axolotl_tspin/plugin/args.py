"""Keys that the plugin adds to Axolotl's configuration."""

from pydantic import BaseModel

from axolotl_tspin.config import TSpinConfig


class TSpinArgs(BaseModel):
    """The `t_spin:` block, which Axolotl joins to its configuration."""

    t_spin: TSpinConfig | None = None
