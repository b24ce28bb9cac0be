"""Whether a YAML is one, and whether what is read of it has the shape that it must have."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from axolotl_tspin.errors import TSpinError

TEXTS = ("base_model", "output_dir", "lora_model_dir", "dataset_prepared_path")
MAPPINGS = ("t_spin", "accelerator_config", "peft")
DATA = ("datasets", "test_datasets")


def parse_yaml(path: str | Path) -> dict[str, Any]:
    """A file's keys and values.

    Raises:
        TSpinError: it cannot be read, is no YAML, or holds something else than keys.
    """
    try:
        content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise TSpinError(f"{path} cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise TSpinError(
            f"{path} is no text in UTF-8 (byte {error.start}); expected the YAML that "
            "`axolotl train` takes"
        ) from error
    except yaml.YAMLError as error:
        raise TSpinError(f"{path} is no valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        held = "nothing" if content is None else _kind(content)
        raise TSpinError(
            f"{path} holds {held}; expected keys and values (`base_model: …`), as "
            "`axolotl train` takes them"
        )
    return content


def check_shape(cfg: Mapping[str, Any], where: str = "") -> None:
    """Raise TSpinError for a value of another kind than its key's.

    Args:
        where: what stands before the key in the error, such as the file's name.
    """
    for keys, kind, name in ((TEXTS, str, "text"), (MAPPINGS, Mapping, "keys and values")):
        for key in keys:
            value = cfg.get(key)
            if value is not None and not isinstance(value, kind):
                raise TSpinError(f"{where}`{key}` is {_kind(value)}; expected {name}")
    for key in DATA:
        _check_data(cfg.get(key), f"{where}`{key}")


def _check_data(entries: Any, key: str) -> None:
    example = "such as `- {path: train.jsonl, type: t_spin.chat_template}`"
    if not isinstance(entries, list | None):
        raise TSpinError(f"{key}` is {_kind(entries)}; expected a list of data sets, {example}")
    for index, entry in enumerate(entries or []):
        if not isinstance(entry, Mapping):
            raise TSpinError(
                f"{key}[{index}]` is {_kind(entry)}; expected a data set's keys, {example}"
            )
        path = entry.get("path")
        if not isinstance(path, str) or not path:
            raise TSpinError(
                f"{key}[{index}].path` is {_kind(path)}; expected a file, a folder or a name on "
                f"the hub, {example}"
            )


def _kind(value: Any) -> str:
    """A value in a few words."""
    if isinstance(value, Mapping):
        return "a block of keys" if value else "an empty block"
    if isinstance(value, list):
        return "a list"
    return "missing" if value is None or value == "" else f"`{value}`"
