"""What the plugin adds to Axolotl's configuration."""

from pydantic import BaseModel

from axolotl_tspin.config import TSpinConfig


class TSpinArgs(BaseModel):
    """Joined to Axolotl's configuration: the `t_spin:` block."""

    t_spin: TSpinConfig | None = None
