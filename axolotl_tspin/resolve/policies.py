"""Policies that iterations start from, and checks of the triplets that they train on."""

from axolotl.utils.logging import get_logger

from axolotl_tspin.config import TSpinConfig
from axolotl_tspin.errors import TSpinError
from axolotl_tspin.resolve.yaml_file import RawConfig
from axolotl_tspin.run.directory import Policy, RunDirectory
from axolotl_tspin.run.fingerprints import policy_fingerprint
from axolotl_tspin.run.logps import check_reference
from axolotl_tspin.run.prompts import Prompts
from axolotl_tspin.run.triplets import check_triplets

LOG = get_logger(__name__)


def start_from(cfg: RawConfig, policy: Policy, initial: Policy) -> None:
    """Make the configuration load this policy, with the initial policy's tokenizer."""
    cfg["tokenizer_config"] = cfg.get("tokenizer_config") or initial.base_model
    cfg["base_model"] = policy.base_model
    if policy.adapter_dir:
        cfg["lora_model_dir"] = policy.adapter_dir


def check_start_policy(
    run: RunDirectory,
    number: int,
    policy: Policy,
    revision: str | None,
    *,
    allow_foreign: bool,
) -> str:
    """Compute the fingerprint of the policy that iteration `number` starts from.

    Raises:
        TSpinError: the weights are neither those that the run began with nor those that the
            iteration before trained.
    """
    fingerprint = policy_fingerprint(policy, run.fingerprints, revision)
    if number == 0:
        recorded, origin = run.initial_policy(), "the run began with"
    else:
        recorded = run.iteration(number - 1).training_record()["policy"]
        origin = f"iteration {number - 1} trained"
    if fingerprint != recorded and not allow_foreign:
        raise TSpinError(
            f"the weights in {policy} (fingerprint {fingerprint}) are not those that {origin} "
            f"({recorded}). Put these back, or go on with the present ones with "
            "`t_spin.allow_foreign: true`, which is recorded"
        )
    return fingerprint


def accepted_triplets(
    cfg: RawConfig, config: TSpinConfig, run: RunDirectory, number: int, policy: Policy
) -> list[str]:
    """Refuse triplets that the run's policies did not sample.

    Returns:
        Descriptions of what `allow_foreign` let pass.
    """
    start = check_start_policy(
        run, number, policy, cfg.get("revision_of_model"), allow_foreign=config.allow_foreign
    )
    trained = [run.iteration(t).training_record()["policy"] for t in range(number)]
    starts = [*[run.initial_policy(), *trained][:number], start]
    findings = []
    for split in run.splits():
        for t in run.window(number, split, config.history_window):
            findings += check_triplets(
                run.iteration(t).triplets(split),
                Prompts(run.prompts(split)),
                initial_policy=run.initial_policy(),
                start_policy=starts[t],
                earlier_policies=[run.initial_policy(), *trained[:t]],
                allow_foreign=config.allow_foreign,
            )
    for triplets, path in run.references(number):
        check_reference(path, triplets, start)
    for finding in findings:
        LOG.warning("T-SPIN: accepted by `t_spin.allow_foreign`: %s", finding)
    return findings
