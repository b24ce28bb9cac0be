"""Sampling engines outside of this process: vLLM's environment, and servers."""

import importlib.metadata
import os
import subprocess
import sys

import httpx
from packaging.requirements import Requirement
from packaging.version import InvalidVersion, Version

from axolotl_tspin.config import GenerationConfig
from axolotl_tspin.errors import TSpinError
from axolotl_tspin.logs import get_logger

LOG = get_logger(__name__)

SECONDS_TO_START = 60.0
"""Longest wait for an interpreter, which may be on a slow network drive."""

SECONDS_TO_ANSWER = 5.0

FIND_VLLM = """
import importlib.metadata, importlib.util
if importlib.util.find_spec("vllm"):
    try:
        print("vllm", importlib.metadata.version("vllm"))
    except importlib.metadata.PackageNotFoundError:
        print("vllm", "?")
"""


def check_vllm(config: GenerationConfig) -> None:
    """Check that the interpreter that samples has vLLM, and warn of an old one.

    Raises:
        TSpinError: it cannot be run, or has no vLLM.
    """
    if config.backend != "vllm":
        return
    python = config.python or sys.executable
    where = f"`t_spin.generation.python: {python}`" if config.python else python
    install = (
        f"type `{python} -m pip install vllm`, or name the interpreter of an environment that has "
        "it with `t_spin.generation.python` (docs/generation.md)"
    )
    # As its workers start: without this environment's packages.
    own = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PYTHONHOME")}
    try:
        done = subprocess.run(
            [python, "-c", FIND_VLLM],
            env=own,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=SECONDS_TO_START,
        )
    except subprocess.TimeoutExpired:
        LOG.warning(
            "T-SPIN: %s did not say within %.0f s whether it has vLLM", where, SECONDS_TO_START
        )
        return
    except OSError as error:
        raise TSpinError(
            f"`backend: vllm`: {where} cannot be run ({error.strerror}); name the interpreter of "
            "an environment that has vLLM"
        ) from error
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise TSpinError(
            f"`backend: vllm`: {where} ended with status {done.returncode} ({reason}); name the "
            "interpreter of an environment that has vLLM"
        )
    words = done.stdout.split()
    if "vllm" not in words:
        raise TSpinError(f"`backend: vllm`: {where} has no vLLM; {install}")
    wanted = vllm_requirement()
    if wanted and not _is_met(wanted, words[words.index("vllm") + 1]):
        LOG.warning(
            "T-SPIN: %s has vLLM %s; Axolotl %s asks for %s, and older ones have not been tried",
            where,
            words[words.index("vllm") + 1],
            importlib.metadata.version("axolotl"),
            wanted,
        )


def vllm_requirement() -> Requirement | None:
    """The vLLM that the installed Axolotl asks for in its extra `vllm`."""
    parsed = map(Requirement, importlib.metadata.requires("axolotl") or [])
    return next((r for r in parsed if r.name == "vllm"), None)


def _is_met(wanted: Requirement, version: str) -> bool:
    try:
        return wanted.specifier.contains(Version(version), prereleases=True)
    except InvalidVersion:
        return True  # built from a checkout; nothing to compare


def tell_unreachable_servers(config: GenerationConfig) -> list[str]:
    """Warn of servers that do not answer; the engine waits for them. Return their URLs."""
    if config.backend != "server" or config.server_command:
        return []
    away = []
    for url in config.servers:
        try:
            httpx.get(f"{url.rstrip('/')}/models", timeout=SECONDS_TO_ANSWER)
        except httpx.TransportError as error:
            away.append(url)
            LOG.warning(
                "T-SPIN: `t_spin.generation.servers`: %s cannot be reached (%s). Start it; it is "
                "waited for, for `patience: %.0f` seconds",
                url,
                type(error).__name__,
                config.patience,
            )
    return away
