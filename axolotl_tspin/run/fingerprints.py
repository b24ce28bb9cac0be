"""Fingerprints of policies: hashes of the weights themselves, whatever their folder."""

import hashlib
import json
from pathlib import Path
from typing import Any

from axolotl_tspin.errors import TSpinError
from axolotl_tspin.run.directory import Policy
from axolotl_tspin.run.files import digest, write_json
from axolotl_tspin.run.ranks import rank

WEIGHT_FILES = ("*.safetensors", "*.bin", "*.gguf")
NOT_WEIGHTS = ("training_args.bin", "optimizer.bin", "scheduler.bin")


def policy_fingerprint(policy: Policy, remembered: Path, revision: str | None = None) -> str:
    """Hash a policy's weights, and its adapter's if it has one.

    Tensors are hashed by name, type, shape and content, so the same weights in another folder,
    or split into other files, have the same fingerprint.

    Args:
        remembered: a JSON file of fingerprints. Weights whose files have the same size and time as
            before are not read again.
        revision: revision of a model on the hub.

    Raises:
        TSpinError: no weights are found.
    """
    parts = [_remembered(_folder(policy.base_model, revision), remembered)]
    if policy.adapter_dir:
        parts.append(_remembered(_folder(policy.adapter_dir, None), remembered))
    return "+".join(parts)


def weights_size(policy: Policy, revision: str | None = None) -> int | None:
    """Count the bytes of the base model's weight files; None if they are not on this machine."""
    try:
        files = _weight_files(_folder(policy.base_model, revision, download=False))
    except TSpinError:
        return None
    return sum(file.stat().st_size for file in files)


def _folder(name: str, revision: str | None, *, download: bool = True) -> Path:
    """Find the folder of a model on disk, or of the local copy of a hub's model."""
    if Path(name).is_dir():
        return Path(name)
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        for pattern in WEIGHT_FILES:
            folder = Path(
                snapshot_download(
                    name, revision=revision, local_files_only=not download, **_hub_filter(pattern)
                )
            )
            if _weight_files(folder):
                break
        return folder
    except (HFValidationError, LocalEntryNotFoundError) as error:
        raise TSpinError(
            f"`{name}` is neither a folder nor a model that the hub has or had ({error})"
        ) from error


def _hub_filter(pattern: str) -> dict[str, Any]:
    """Select what to download of a hub's model: one kind of weights, from the top folder only.

    The hub's `*` also matches folders.
    """
    return {"allow_patterns": [pattern], "ignore_patterns": ["*/*", *NOT_WEIGHTS]}


def _remembered(folder: Path, remembered: Path) -> str:
    files = _weight_files(folder)
    if not files:
        raise TSpinError(
            f"{folder} holds no weights ({', '.join(WEIGHT_FILES)}): it is not a policy, or "
            "`t_spin.keep_models` deleted them"
        )
    stats = [file.stat() for file in files]
    key = digest(
        [(str(f.resolve()), s.st_size, s.st_mtime_ns) for f, s in zip(files, stats, strict=True)]
    )
    known = _read(remembered)
    if key not in known:
        value = _weights_hash(files)
        if rank() == 0:
            # Read it again: another process may have added to it during the hashing.
            write_json(remembered, {**_read(remembered), key: value})
        return value
    return known[key]


def _read(remembered: Path) -> dict[str, str]:
    try:
        return json.loads(remembered.read_text())
    except (OSError, ValueError):
        return {}


def _weight_files(folder: Path) -> list[Path]:
    """List the weight files of the first kind that the folder has."""
    for pattern in WEIGHT_FILES:
        files = sorted(f for f in folder.glob(pattern) if f.name not in NOT_WEIGHTS)
        if files:
            return files
    return []


def _weights_hash(files: list[Path]) -> str:
    whole = hashlib.sha256()
    if files[0].suffix != ".safetensors":
        for file in files:
            with open(file, "rb") as opened:
                whole.update(hashlib.file_digest(opened, "sha256").digest())
        return whole.hexdigest()[:16]
    import torch
    from safetensors import safe_open

    tensors: dict[str, bytes] = {}
    for file in files:
        with safe_open(file, framework="pt") as opened:
            for name in opened.keys():  # noqa: SIM118 (not a dictionary)
                tensor = opened.get_tensor(name)
                head = f"{name} {tensor.dtype} {list(tensor.shape)}".encode()
                content = hashlib.sha256(head)
                content.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy())
                tensors[name] = content.digest()
    for name in sorted(tensors):
        whole.update(tensors[name])
    return whole.hexdigest()[:16]
