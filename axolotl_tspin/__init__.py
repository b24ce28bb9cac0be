"""T-SPIN (triplet-based self-play fine-tuning, arXiv 2601.08198), for Axolotl and for transformers.

Importing this package is cheap: a name's module, and torch with it, is loaded when something asks
for the name.
"""

import importlib
import importlib.util
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from axolotl_tspin.plugin.plugin import TSpinPlugin
    from axolotl_tspin.training.arguments import TSpinTrainingArguments
    from axolotl_tspin.training.collator import TripletCollator
    from axolotl_tspin.training.loss import t_spin_loss
    from axolotl_tspin.training.trainer import TripletTrainer

__version__ = "0.1.0"
__all__ = [
    "TSpinPlugin",
    "TSpinTrainingArguments",
    "TripletCollator",
    "TripletTrainer",
    "__version__",
    "t_spin_loss",
]

_MODULES = {
    "TSpinPlugin": "plugin.plugin",
    "TSpinTrainingArguments": "training.arguments",
    "TripletCollator": "training.collator",
    "TripletTrainer": "training.trainer",
    "t_spin_loss": "training.loss",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if name == "TSpinPlugin":
        need_axolotl("`TSpinPlugin`")
    return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)


def need_axolotl(what: str) -> None:
    """Raise ImportError, with what to install, if Axolotl is not installed.

    Args:
        what: the thing that needs Axolotl, as the message names it.
    """
    if importlib.util.find_spec("axolotl") is None:
        raise ImportError(
            f"{what} needs Axolotl: pip install 'axolotl>=0.19,<0.22' (without Axolotl, torch and "
            "transformers are enough for TripletTrainer, TripletCollator, TSpinTrainingArguments "
            "and t_spin_loss)"
        )
