"""Data sets of a YAML: their types under Axolotl's names, their columns, their files."""

import hashlib
from pathlib import Path
from typing import Any

from axolotl.utils.data.shared import load_dataset_with_config
from axolotl.utils.dict import DictDefault
from axolotl.utils.schemas.datasets import SFTDataset
from datasets.exceptions import DatasetsError

from axolotl_tspin.config import TSpinConfig, nearest_key_message
from axolotl_tspin.errors import TSpinError
from axolotl_tspin.resolve.file_faults import first_fault
from axolotl_tspin.resolve.yaml_file import RawConfig
from axolotl_tspin.run.public_names import without_credentials
from axolotl_tspin.strategies import DATASET_KEYS, LOADING_KEYS, STRATEGY_KEYS

STRATEGIES = "axolotl_tspin.strategies"

LOADING_ERRORS = (
    ValueError,
    TypeError,
    OSError,
    ImportError,
    StopIteration,
    DatasetsError,
)
"""What `datasets` raises where data is missing, empty or torn."""


def translate_entry(entry: RawConfig, where: str) -> None:
    """Set an entry's type to the strategy's module, and rename keys that Axolotl would drop.

    Raises:
        TSpinError: the type is unknown, or a key is unknown or has no effect.
    """
    kind = entry.get("type")
    known = [f"t_spin.{name}" for name in STRATEGY_KEYS]
    if kind not in known:
        raise TSpinError(
            f"`{where}.type: {kind}` is not a type of `rl: t_spin`; it is one of {', '.join(known)}"
        )
    strategy = str(kind).removeprefix("t_spin.")
    existing = [*SFTDataset.model_fields, *DATASET_KEYS]
    # This version of Axolotl may lack the newest of the keys that load rows.
    allowed = [k for k in (*LOADING_KEYS, *STRATEGY_KEYS[strategy]) if k in existing]
    for key in entry:
        if key in existing and key not in allowed:
            raise TSpinError(
                f"`{where}.{key}` has no effect with `type: {kind}`; remove it (keys that have "
                f"one: {', '.join(sorted(allowed))})"
            )
        if key not in allowed:
            raise TSpinError(nearest_key_message(key, allowed, f"`{where}`"))
    entry["type"] = f"{STRATEGIES}.{strategy}"
    for ours, carrier in DATASET_KEYS.items():
        value = entry.get(ours)
        if value is not None and not isinstance(value, str):
            raise TSpinError(
                f"`{where}.{ours}: {value}` is not text ({type(value).__name__}); write text, in "
                "quotes if need be"
            )
        if value is not None:
            entry[carrier] = entry.pop(ours)


def have_responses(cfg: RawConfig, key: str, config: TSpinConfig) -> bool:
    """True if all of the data sets already have both generated responses."""
    for index, entry in enumerate(cfg[key]):
        names = load_data(cfg, entry, f"`{key}[{index}]`").column_names
        if isinstance(names, dict):
            names = names.get(entry.get("split") or "train") or next(iter(names.values()))
        is_spin = entry["type"].endswith(".spin") and "generated" in names
        if not is_spin and not {config.field_synthetic, config.field_proto_synthetic} <= set(names):
            return False
    return True


def load_data(cfg: RawConfig, entry: RawConfig, where: str) -> Any:
    """Load a data set, or its splits by name, as Axolotl does; TSpinError if that fails.

    Args:
        where: name of the entry in errors.
    """
    try:
        data = load_dataset_with_config(
            DictDefault(entry), use_auth_token=bool(cfg.get("hf_use_auth_token"))
        )
        if _local_files(entry):
            _check_text(data)
        return data
    except LOADING_ERRORS as error:
        raise TSpinError(f"{where}: {_why_not_loaded(entry, error)}") from error


def _check_text(data: Any) -> None:
    """Raise ArrowInvalid where text is not UTF-8, which Arrow's reader of JSON lets pass."""
    for part in data.values() if isinstance(data, dict) else [data]:
        part.data.table.validate(full=True)


def _why_not_loaded(entry: RawConfig, error: BaseException) -> str:
    for file in _local_files(entry):
        fault = first_fault(file, entry.get("ds_type"))
        if fault:
            return f"{file}, {fault}. Mend the file, or remove what is wrong in it"
    path = without_credentials(entry["path"])
    cause = error.__cause__ if isinstance(error, DatasetsError) and error.__cause__ else error
    reason = " ".join(str(cause).replace(entry["path"], path).split())[:300]
    return (
        f"the data in {path} cannot be loaded ({reason or type(cause).__name__}). Expected a file "
        "(*.jsonl, *.parquet, …), a folder or a name on the hub: check `path`, `split`, `name` and "
        "`data_files`"
    )


def _local_files(entry: RawConfig) -> list[Path]:
    """List the local files that a data set is loaded from."""
    named = entry.get("data_files")
    if not named:
        return data_files([{"path": entry["path"]}])
    return data_files([{"path": name} for name in ([named] if isinstance(named, str) else named)])


def triplets_entry(path: Path) -> DictDefault:
    """Make the `datasets` entry for a run's triplets."""
    return DictDefault(
        {
            "path": str(path),
            "ds_type": "parquet",
            "split": "train",
            "type": f"{STRATEGIES}.triplets",
        }
    )


def data_files(entries: list[RawConfig]) -> list[Path]:
    """List the local files of data sets."""
    files: list[Path] = []
    for entry in entries:
        named = entry.get("data_files") or []
        for path in [entry.get("path"), *([named] if isinstance(named, str) else named)]:
            root = Path(path or "")
            files += sorted(p for p in root.rglob("*") if p.is_file()) if root.is_dir() else []
            files += [root] if root.is_file() else []
    return files


def data_digests(entries: list[RawConfig]) -> dict[str, str]:
    """Compute the SHA-256 of every local file of the data sets."""
    digests = {}
    for path in data_files(entries):
        with open(path, "rb") as file:
            digests[f"data file {path}"] = hashlib.file_digest(file, "sha256").hexdigest()
    return digests
