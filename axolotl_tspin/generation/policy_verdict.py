"""The verdict on the policy that is sampled from."""

from axolotl_tspin.errors import TSpinError
from axolotl_tspin.logs import get_logger
from axolotl_tspin.resolve.generation_plan import GenerationPlan
from axolotl_tspin.verdicts.evidence import Evidence, keep_evidence, read_evidence
from axolotl_tspin.verdicts.verdict import verdict_of

LOG = get_logger(__name__)


def refuse_collapsed_policy(plan: GenerationPlan) -> None:
    """Refuse to sample from a policy that collapsed, unless `t_spin.on_warning` says otherwise.

    The few responses of the final policy are sampled in any case.

    Raises:
        TSpinError: the iteration before collapsed.
    """
    number = plan.due.iteration - 1
    if number >= 0:
        _refuse(plan, read_evidence(plan.run, number, plan.config))


def judge_policy(plan: GenerationPlan) -> None:
    """Add what was sampled to the evidence about the iteration before, and judge it again.

    Raises:
        TSpinError: as for `refuse_collapsed_policy`.
    """
    number = plan.due.iteration - 1
    if number < 0:
        return
    evidence = keep_evidence(plan.run, number, plan.config)
    if evidence is not None and evidence.is_sampled:
        LOG.info("T-SPIN: iteration %s: %s", number, verdict_of(evidence))
    _refuse(plan, evidence)


def _refuse(plan: GenerationPlan, evidence: Evidence | None) -> None:
    if evidence is None or plan.is_final or plan.config.on_warning == "continue":
        return
    word, sentence = verdict_of(evidence)
    if word == "collapsed":
        path = plan.run.iteration(evidence.first).path
        raise TSpinError(
            f"iteration {evidence.first} collapsed: {sentence}. Nothing more is sampled from its "
            f"policy. Lower `learning_rate`, `num_epochs` or `t_spin.beta`, move {path / 'model'} "
            f"and {path / 'trained.json'} away, and run the same command again, which trains that "
            "iteration again on the responses it has. To go on nevertheless, set "
            "`t_spin.on_warning: continue`"
        )
