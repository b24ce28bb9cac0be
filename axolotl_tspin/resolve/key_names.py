"""Top-level keys of a YAML that look misspelt; Axolotl ignores keys that it does not know."""

import difflib
import importlib
from collections.abc import Iterable, Mapping
from typing import Any

from axolotl_tspin.logs import get_logger

LOG = get_logger(__name__)

LIKENESS = 0.8
"""Of two names, as `difflib` measures it: `learing_rate` has 0.96 of `learning_rate`."""


def warn_of_misspelt_keys(raw: Mapping[str, Any]) -> None:
    """Log a warning for each key that nobody knows and that is like one that Axolotl, or a plugin
    of the YAML, knows."""
    for key, meant in misspelt(raw, _known(raw.get("plugins") or [])):
        LOG.warning(
            "T-SPIN: `%s` is not a key of Axolotl, which ignores it. Perhaps `%s` was meant",
            key,
            meant,
        )


def misspelt(keys: Iterable[str], known: Iterable[str]) -> list[tuple[str, str]]:
    """List the keys that are not known, each with the known one that it is like."""
    names = set(known)
    unknown = [str(key) for key in keys if key not in names]
    found = [(key, difflib.get_close_matches(key, names, 1, LIKENESS)) for key in unknown]
    return [(key, near[0]) for key, near in found if near]


def _known(plugins: Iterable[str]) -> set[str]:
    from axolotl.utils.schemas.config import AxolotlInputConfig

    models = [AxolotlInputConfig]
    for plugin in plugins:
        kind = _plugin_class(plugin)
        # Axolotl makes the instance; a second one would do again what its constructor does.
        if arguments := kind.__new__(kind).get_input_args():
            module, name = arguments.rsplit(".", 1)
            models.append(getattr(importlib.import_module(module), name))
    fields = {name: field for model in models for name, field in model.model_fields.items()}
    return {*fields, *(field.alias for field in fields.values() if field.alias)}


def _plugin_class(plugin: str) -> Any:
    """Find a plugin as Axolotl does, which takes its own ones without `axolotl.integrations.`."""
    module, name = plugin.rsplit(".", 1)
    try:
        return getattr(importlib.import_module(module), name)
    except ModuleNotFoundError:
        return getattr(importlib.import_module(f"axolotl.integrations.{module}"), name)
