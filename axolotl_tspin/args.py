"""What the plugin adds to Axolotl's configuration and to its training arguments."""

from dataclasses import dataclass, field

from pydantic import BaseModel

from axolotl_tspin.config import TSpinConfig


class TSpinArgs(BaseModel):
    """Joined to Axolotl's configuration: the `t_spin:` block."""

    t_spin: TSpinConfig | None = None


@dataclass
class TSpinTrainingArgs:
    """Joined to Axolotl's training arguments: what the trainer's loss needs."""

    t_spin_alpha: float = field(default=1.0, metadata={"help": "α of eq. 7"})
    t_spin_beta: float = field(default=0.1, metadata={"help": "β of eq. 7"})
    t_spin_loss: str = field(default="logistic", metadata={"help": "ℓ of eq. 7"})
    t_spin_layout: str = field(default="auto", metadata={"help": "auto, shared_prefix or padded"})
    t_spin_max_tokens_per_row: int | None = field(
        default=None, metadata={"help": "tokens in a row of the shared-prefix layout; None: any"}
    )
    t_spin_gradient_norms: int = field(
        default=0, metadata={"help": "steps between two measurements of ‖∇L‖'s parts; 0: never"}
    )
