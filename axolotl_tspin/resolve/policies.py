"""Policies that iterations start from, and checks of the triplets that they train on."""

from pathlib import Path
from typing import Any

from axolotl_tspin.config import TSpinConfig
from axolotl_tspin.errors import TSpinError
from axolotl_tspin.logs import get_logger
from axolotl_tspin.resolve.yaml_file import RawConfig
from axolotl_tspin.run.directory import Iteration, Policy, RunDirectory
from axolotl_tspin.run.fingerprints import policy_fingerprint
from axolotl_tspin.run.logps import check_reference
from axolotl_tspin.run.prompts import Prompts
from axolotl_tspin.run.triplets import check_triplets

LOG = get_logger(__name__)


def start_from(cfg: RawConfig, policy: Policy, initial: Policy) -> None:
    """Make the configuration load this policy, with the initial policy's tokenizer.

    Raises:
        TSpinError: an iteration's policy is missing, and the next iteration is not trained yet.
    """
    trained = iteration_of(policy) if policy != initial else None
    if trained is not None and not following(trained).trained_marker.exists():
        _refuse_missing(trained)
    cfg["tokenizer_config"] = cfg.get("tokenizer_config") or initial.base_model
    cfg["base_model"] = policy.base_model
    if policy.adapter_dir:
        cfg["lora_model_dir"] = policy.adapter_dir


def iteration_of(policy: Policy) -> Iteration | None:
    """The iteration of a run that trained a policy, by its path; None if none did."""
    model = Path(policy.adapter_dir or policy.base_model)
    number = model.parent.name.removeprefix("iteration_")
    is_trained = model == Iteration(model.parent).model and number.isdigit()
    return Iteration(model.parent) if is_trained else None


def following(iteration: Iteration) -> Iteration:
    """The iteration after this one."""
    name, number = iteration.path.name.rsplit("_", 1)
    return Iteration(iteration.path.with_name(f"{name}_{int(number) + 1}"))


def how_to_train_again(iteration: Iteration) -> str:
    """Say, as the end of a sentence, how to train an iteration that is trained already again."""
    return (
        f"move {iteration.model.name} and {iteration.trained_marker.name} out of {iteration.path}, "
        f"and the folder {following(iteration).path.name}, whose responses are the lost policy's"
    )


def _refuse_missing(iteration: Iteration) -> None:
    try:
        iteration.check_trained()
    except TSpinError as error:
        raise TSpinError(
            f"{iteration.model}: the policy that {iteration.path.name} trained is missing or not "
            f"whole, and {following(iteration).path.name} starts from it. Restore the folder from "
            f"a copy; or, to train {iteration.path.name} again, {how_to_train_again(iteration)}"
        ) from error


def not_finite(model: Any, what: str) -> TSpinError:
    """Make the error of a policy whose outputs are not finite.

    Args:
        model: the policy. Its attribute `t_spin_policy` has its places, if it was loaded for a run.
        what: what is not finite, as the object of "gives".
    """
    policy = getattr(model, "t_spin_policy", None) or Policy(model.name_or_path)
    trained = iteration_of(policy)
    remedy = (
        "Check its weights, and the precision: `bf16` rather than `fp16`"
        if trained is None
        else f"Restore {trained.model} from a copy; or train {trained.path.name} again with a "
        f"lower `learning_rate`: {how_to_train_again(trained)}"
    )
    return TSpinError(f"the policy {policy} gives {what}, so it is not used. {remedy}")


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
        TSpinError: the weights are missing, or neither those that the run began with nor those
            that the iteration before trained.
    """
    if number > 0:
        _refuse_missing(run.iteration(number - 1))
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
