"""Experiment trackers that the YAML asks for: installed, logged in, and within reach.

A training that lacks one of these ends when its trainer is made, which is hours after the sampling
began.
"""

import configparser
import netrc
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import httpx
from axolotl.utils import is_comet_available, is_mlflow_available, is_trackio_available
from axolotl.utils.comet_ import setup_comet_env_vars
from axolotl.utils.dict import DictDefault
from axolotl.utils.mlflow_ import setup_mlflow_env_vars
from axolotl.utils.trackio_ import setup_trackio_env_vars
from axolotl.utils.wandb_ import setup_wandb_env_vars
from transformers.integrations import is_tensorboard_available, is_wandb_available

from axolotl_tspin.errors import TSpinError
from axolotl_tspin.resolve.preflight.hub import check_token

SECONDS = 10.0
"""Longest wait for a tracking server's answer."""

SECONDS_TO_IMPORT = 60.0
PREFIXES = ("use_", "wandb_", "mlflow_", "hf_mlflow_", "comet_", "trackio_")
WITHOUT_LOGIN = ("offline", "disabled", "dryrun")
WANDB_HOST = "api.wandb.ai"


class Tracker(NamedTuple):
    """A tracker.

    Attributes:
        keys: the YAML's keys that switch it on.
        package: what to install.
        lacks: describes what is missing beside the package, and what to type; None if nothing.
    """

    name: str
    keys: tuple[str, ...]
    package: str
    available: Callable[[], bool]
    lacks: Callable[[Mapping[str, Any]], str | None]


def check_trackers(cfg: Mapping[str, Any]) -> None:
    """Raise TSpinError for a tracker that the training could not use.

    Args:
        cfg: the YAML's keys and values, validated or not.
    """
    # Values of other types are left to Axolotl's validation.
    read = {
        key: value
        for key, value in cfg.items()
        if key.startswith(PREFIXES) and isinstance(value, (str, bool))
    }
    for tracker in TRACKERS:
        with _as_axolotl_sets_it_up(read) as seen:
            if not seen.get(tracker.keys[0]):
                continue
            asking = next(key for key in reversed(tracker.keys) if read.get(key))
            asked = f"`{asking}: {_shown(read[asking])}` asks for {tracker.name}"
            if not tracker.available():
                raise TSpinError(
                    f"{asked}, which is not installed here: `pip install {tracker.package}`, or "
                    "remove the key"
                )
            lacks = tracker.lacks(seen)
            if lacks:
                raise TSpinError(f"{asked}, {lacks}, or remove the key")


@contextmanager
def _as_axolotl_sets_it_up(read: Mapping[str, Any]) -> Iterator[DictDefault]:
    """Give the keys as Axolotl completes them, under the environment variables that it sets."""
    seen, before = DictDefault(dict(read)), dict(os.environ)
    try:
        for set_up in (
            setup_wandb_env_vars,
            setup_mlflow_env_vars,
            setup_comet_env_vars,
            setup_trackio_env_vars,
        ):
            set_up(seen)
        yield seen
    finally:
        for name in os.environ.keys() - before.keys():
            del os.environ[name]
        os.environ.update(before)


def _shown(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _wandb_lacks(seen: Mapping[str, Any]) -> str | None:
    settings = _wandb_settings()
    mode = os.environ.get("WANDB_MODE") or settings.get("mode", "online")
    disabled = os.environ.get("WANDB_DISABLED", "").lower() in ("true", "1", "yes", "on")
    if mode in WITHOUT_LOGIN or disabled:
        return None
    named = ("WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE")
    if any(os.environ.get(name) for name in named) or settings.get("api_key"):
        return None
    base_url = os.environ.get("WANDB_BASE_URL") or settings.get("base_url")
    hosts = [urlsplit(base_url).netloc] if base_url else _wandb_hosts()
    if any(_netrc_has(host) for host in hosts):
        return None
    return (
        f"and this machine has no key for {hosts[0]}: type `wandb login`, set WANDB_API_KEY, or "
        "keep the log here with `wandb_mode: offline`"
    )


def _wandb_settings() -> dict[str, str]:
    """Read what `wandb login` and `wandb offline` left in its files of settings."""
    folder = os.environ.get("WANDB_CONFIG_DIR") or str(Path.home() / ".config" / "wandb")
    parser = configparser.ConfigParser(interpolation=None)
    try:
        parser.read([Path(folder) / "settings", Path("wandb") / "settings"], encoding="utf-8")
    except (configparser.Error, UnicodeDecodeError):
        return {}
    return dict(parser["default"]) if "default" in parser else {}


def _wandb_hosts() -> list[str]:
    """The hosts whose keys W&B takes where no server is named; it has moved between versions."""
    import wandb

    return list(dict.fromkeys([WANDB_HOST, urlsplit(wandb.Settings().base_url).netloc]))


def _netrc_has(host: str) -> bool:
    named = os.environ.get("NETRC")
    files = [Path(named)] if named else [Path.home() / ".netrc", Path.home() / "_netrc"]
    for file in files:
        try:
            found = netrc.netrc(file.expanduser()).authenticators(host)
        except (OSError, netrc.NetrcParseError):
            continue
        if found and found[2]:
            return True
    return False


def _mlflow_lacks(seen: Mapping[str, Any]) -> str | None:
    uri = os.environ.get("MLFLOW_TRACKING_URI", "")
    scheme, _, rest = uri.partition("://")
    if scheme in ("http", "https"):
        try:
            httpx.get(uri, timeout=SECONDS)  # any answer will do: a login is MLflow's matter
        except (httpx.TransportError, httpx.InvalidURL) as error:
            return (
                f"and its server {_public(uri)} cannot be reached ({type(error).__name__}): start "
                "it with `mlflow server`, name another with `mlflow_tracking_uri`"
            )
        return None
    folder = _local_folder(scheme, rest) if rest else Path(uri)
    if folder and not _can_be_written(folder):
        return (
            f"and {folder} cannot be written to: name a folder that can be with "
            "`mlflow_tracking_uri`"
        )
    return None


def _local_folder(scheme: str, rest: str) -> Path | None:
    """The folder of a URI such as `sqlite:///runs/mlflow.db`; None if it is not a local one."""
    if scheme == "file":
        return Path(rest)
    return Path(rest.removeprefix("/")).parent if scheme == "sqlite" else None


def _can_be_written(folder: Path) -> bool:
    """True if files can be made in a folder, or the folder itself can be made."""
    existing = next(place for place in (folder, *folder.absolute().parents) if place.exists())
    return existing.is_dir() and os.access(existing, os.W_OK | os.X_OK)


def _public(uri: str) -> str:
    """Leave a user's name and password out of a URL."""
    parts = urlsplit(uri)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()


def _comet_lacks(seen: Mapping[str, Any]) -> str | None:
    # Another process: comet_ml asks to be imported before torch, and keeps what it reads.
    command = "import comet_ml; print(comet_ml.config.get_config('comet.api_key') is not None)"
    try:
        done = subprocess.run(
            [sys.executable, "-c", command],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=SECONDS_TO_IMPORT,
        )
    except subprocess.TimeoutExpired:
        return f"and `import comet_ml` does not end within {SECONDS_TO_IMPORT:.0f} s: repair it"
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        return f"and `import comet_ml` fails ({reason}): repair it"
    if done.stdout.split()[-1:] == ["True"]:
        return None
    return "and this machine has no key for it: type `comet login`, or set COMET_API_KEY"


def _trackio_lacks(seen: Mapping[str, Any]) -> str | None:
    space = os.environ.get("TRACKIO_SPACE_ID")
    return check_token(f"its Space {space}") if space else None


def _nothing(seen: Mapping[str, Any]) -> None:
    return None


TRACKERS = (
    Tracker("W&B", ("use_wandb", "wandb_project"), "wandb", is_wandb_available, _wandb_lacks),
    Tracker(
        "MLflow",
        ("use_mlflow", "mlflow_experiment_name"),
        "mlflow",
        is_mlflow_available,
        _mlflow_lacks,
    ),
    Tracker(
        "Comet", ("use_comet", "comet_project_name"), "comet_ml", is_comet_available, _comet_lacks
    ),
    Tracker(
        "Trackio",
        ("use_trackio", "trackio_project_name"),
        "trackio",
        is_trackio_available,
        _trackio_lacks,
    ),
    Tracker("TensorBoard", ("use_tensorboard",), "tensorboard", is_tensorboard_available, _nothing),
)
