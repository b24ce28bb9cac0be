"""T-SPIN (triplet-based self-play fine-tuning, arXiv 2601.08198) as an Axolotl plugin.

Importing this package is cheap: the plugin class, and torch with it, is loaded when something
asks for it.
"""

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = ["TSpinPlugin", "__version__"]

if TYPE_CHECKING:
    from axolotl_tspin.plugin import TSpinPlugin


def __getattr__(name: str) -> Any:
    if name == "TSpinPlugin":
        from axolotl_tspin.plugin import TSpinPlugin

        return TSpinPlugin
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
