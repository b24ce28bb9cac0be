"""The training arguments that the triplet loss needs."""

from dataclasses import dataclass, field

from transformers import TrainingArguments


@dataclass
class TSpinTrainingArgs:
    """Fields of the triplet loss; the plugin joins them to Axolotl's training arguments."""

    t_spin_alpha: float = field(default=1.0, metadata={"help": "α of eq. 7"})
    t_spin_beta: float = field(default=0.1, metadata={"help": "β of eq. 7"})
    t_spin_loss: str = field(default="logistic", metadata={"help": "ℓ of eq. 7"})
    t_spin_layout: str = field(default="auto", metadata={"help": "auto, shared_prefix or padded"})
    t_spin_max_tokens_per_row: int | None = field(
        default=None, metadata={"help": "tokens in a row of the shared-prefix layout; None: any"}
    )
    t_spin_gradient_norms: int = field(
        default=0, metadata={"help": "steps between measurements of the parts of ‖∇L‖; 0: never"}
    )


@dataclass
class TSpinTrainingArguments(TSpinTrainingArgs, TrainingArguments):
    """`TrainingArguments` for a `TripletTrainer` without Axolotl.

    `remove_unused_columns` is False by default: the Trainer would drop the responses.
    """

    remove_unused_columns: bool = field(
        default=False, metadata={"help": "drop columns that the model's forward does not take"}
    )
