"""Warnings about triplets, before they are trained on, that a training would be of no use."""

import math

import numpy as np
import torch

from axolotl_tspin.config import TSpinConfig
from axolotl_tspin.diagnostics.findings import Finding
from axolotl_tspin.errors import TSpinError
from axolotl_tspin.logs import get_logger
from axolotl_tspin.run.directory import RunDirectory
from axolotl_tspin.run.tables import open_groups
from axolotl_tspin.training.metrics import SATURATED, saturated_triplets
from axolotl_tspin.verdicts.evidence import rows_to_measure, triplet_count

LOG = get_logger(__name__)

MOSTLY = 0.9
MOSTLY_CUT = 0.5
FEWEST = 8
"""Triplets that must be seen before their shares mean something."""

GRADIENT_LEFT = 0.1
"""|ℓ′| that a suggested α leaves to the median triplet."""


def refuse_useless_training(run: RunDirectory, number: int, config: TSpinConfig) -> None:
    """Warn of responses that a training would learn nothing from, before a policy is loaded.

    Raises:
        TSpinError: there is such a warning, and `t_spin.on_warning` is `stop`.
    """
    rows = rows_to_measure("train", triplet_count(run, number, "train"))
    for finding in useless_responses(run, number, rows):
        stop_at(finding, config)


def stop_at(finding: Finding, config: TSpinConfig) -> None:
    """Log a warning that stops, and raise it as TSpinError if `t_spin.on_warning` is `stop`."""
    if config.on_warning == "stop":
        raise TSpinError(
            f"{finding}. Nothing was trained; to train nevertheless, set `t_spin.on_warning: "
            "continue`"
        )
    LOG.warning("T-SPIN: %s", finding)


def useless_responses(run: RunDirectory, number: int, rows: np.ndarray) -> list[Finding]:
    """List the warnings about what was sampled.

    Args:
        rows: numbers of the triplets to look at.
    """
    path = run.iteration(number).triplets("train")
    with open_groups(path) as file:
        table = file.read(columns=["annotated_ids", "synthetic_ids", "synthetic_finish_reason"])
    y, s, ends = (table[name].take(rows).to_pylist() for name in table.column_names)
    if len(rows) < FEWEST:
        return []
    again = (
        f"Then move {path.parent.parent / 'responses'} and {path.parent} away, so that they are "
        "sampled again"
    )
    found = []
    same = float(np.mean([a == b for a, b in zip(y, s, strict=True)]))
    if same >= MOSTLY:
        found.append(
            Finding(
                number,
                "synthetic is annotated",
                f"{same:.0%} of the sampled responses are the annotated ones, token for token: "
                "their triplets have no gradient. Usual cause: the policy knows the data by "
                "heart, or samples greedily. Raise `t_spin.generation.temperature`, or take "
                f"prompts that it was not fine-tuned on. {again}",
                stops=True,
            )
        )
    cut = float(np.mean([end == "length" for end in ends]))
    if cut > MOSTLY_CUT:
        found.append(
            Finding(
                number,
                "most responses cut",
                f"{cut:.0%} of the sampled responses were cut at the token limit: training would "
                "teach the policy to tell fragments from whole responses. Raise "
                "`t_spin.generation.max_new_tokens` (and `sequence_len`); if responses reach a "
                "higher limit as well, the model does not end its turns: check `chat_template` "
                f"and `eot_tokens`. {again}",
                stops=True,
            )
        )
    return found


def saturated_from_the_start(
    number: int, logps: np.ndarray, config: TSpinConfig, beta: float
) -> Finding | None:
    """Warn if almost no triplet has a gradient under the policy that the training starts from.

    Args:
        logps: (n, 3) log-probabilities under that policy, in nats.
        beta: the β in force.
    """
    # Relative to the policy that they start from, advantages are 0.
    if config.has_reference or len(logps) < FEWEST:
        return None
    u, v = logps[:, 0] - logps[:, 1], logps[:, 1] - logps[:, 2]
    current, historical = torch.from_numpy(config.alpha * np.stack([u, v]))
    found = saturated_triplets(current, historical, beta=beta, loss=config.loss)["both"]
    share = found.double().mean().item()
    if share < MOSTLY:
        return None
    alpha = alpha_with_gradient(float(np.median(u)), config.loss)
    return Finding(
        number,
        "saturated from the start",
        f"{share:.0%} of {len(logps)} triplets have no gradient before the first step: the median "
        f"α·u is {config.alpha * np.median(u):.1f}, where |ℓ′| is below {SATURATED}. This training "
        f"cannot learn. Lower `t_spin.alpha` from {config.alpha:g} to {alpha:g}, which leaves the "
        f"median triplet |ℓ′| = {GRADIENT_LEFT}",
        stops=True,
    )


def alpha_with_gradient(median: float, loss: str) -> float:
    """Compute the α, to two digits, at which a triplet with this advantage has
    |ℓ′| = `GRADIENT_LEFT`.

    Args:
        median: an advantage in nats, above 0.
        loss: "logistic" or "exponential".
    """
    odds = 1 / GRADIENT_LEFT - (loss == "logistic")
    alpha = math.log(odds) / median
    digits = 1 - math.floor(math.log10(alpha))
    return round(alpha, digits)
