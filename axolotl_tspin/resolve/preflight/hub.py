"""Tokens that may write to the hub: for `hub_model_id`, and for trackers with their logs there."""

from collections.abc import Mapping
from typing import Any

import httpx
import huggingface_hub
from huggingface_hub import constants
from huggingface_hub.utils import build_hf_headers

from axolotl_tspin.errors import TSpinError
from axolotl_tspin.logs import get_logger

LOG = get_logger(__name__)

SECONDS = 10.0
"""Longest wait for the hub's answer."""


def check_hub(cfg: Mapping[str, Any]) -> None:
    """Raise TSpinError if the trained model cannot be pushed to `hub_model_id`."""
    name = cfg.get("hub_model_id")
    if not name:
        return
    lacks = check_token(name)
    if lacks:
        raise TSpinError(f"`hub_model_id: {name}` asks for the hub, {lacks}, or remove the key")


def check_token(target: str) -> str | None:
    """Describe what is missing to write to the hub, and what to type; None if nothing is.

    A hub that does not answer in time is warned of.

    Args:
        target: what is to be written to, for the message.
    """
    if constants.HF_HUB_OFFLINE:
        return (
            f"and HF_HUB_OFFLINE is set, so nothing can be written to {target}: unset it "
            "(and TRANSFORMERS_OFFLINE)"
        )
    token = huggingface_hub.get_token()
    if not token:
        return (
            f"and this machine has no token to write to {target}: type `hf auth login`, set "
            "HF_TOKEN"
        )
    try:
        answer = httpx.get(
            f"{constants.ENDPOINT}/api/whoami-v2",
            headers=build_hf_headers(token=token),
            timeout=SECONDS,
        )
        role = _role(answer)
    except (httpx.HTTPError, ValueError) as error:
        LOG.warning(
            "T-SPIN: %s did not say whether its token may write to %s (%s)",
            constants.ENDPOINT,
            target,
            type(error).__name__,
        )
        return None
    if answer.status_code == 401:
        return f"and {constants.ENDPOINT} refuses its token: type `hf auth login`, set HF_TOKEN"
    if role == "read":
        return (
            f"and its token may only read, not write to {target}: make one that may write, and "
            "type `hf auth login`"
        )
    return None


def _role(answer: httpx.Response) -> str | None:
    """Read the role of the token that was asked with; None if the answer does not tell it."""
    if answer.status_code == 401:
        return None
    answer.raise_for_status()
    account = answer.json()
    access = (account.get("auth") or {}).get("accessToken") or {}
    return access.get("role")
