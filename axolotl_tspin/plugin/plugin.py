"""The Axolotl plugin: `plugins: [axolotl_tspin.TSpinPlugin]` and `rl: t_spin`."""

from datetime import UTC, datetime
from functools import partial
from typing import Any

from axolotl.integrations.base import BasePlugin
from transformers import TrainerCallback

from axolotl_tspin.config import ResolvedRun, TSpinConfig
from axolotl_tspin.errors import TSpinError
from axolotl_tspin.logs import get_logger
from axolotl_tspin.plugin.prepared import clear_half_prepared
from axolotl_tspin.plugin.process import set_up_process
from axolotl_tspin.resolve.steps import prepare_training
from axolotl_tspin.resolve.yaml_file import RL_TYPE, parse_t_spin
from axolotl_tspin.run.directory import Policy, RunDirectory
from axolotl_tspin.run.fingerprints import policy_fingerprint
from axolotl_tspin.run.ranks import in_step, rank

LOG = get_logger(__name__)


class TSpinPlugin(BasePlugin):
    """Hooks T-SPIN into an Axolotl run; runs without `rl: t_spin` are unchanged."""

    def __init__(self) -> None:
        super().__init__()
        self._recorder: Any = None
        self._measurer: Any = None
        self._post_train_calls = 0

    def register(self, cfg: dict) -> None:
        block = cfg.get("t_spin")
        resolved = block.get("resolved") if isinstance(block, dict) else None
        if cfg.get("rl") == RL_TYPE or resolved:
            set_up_process()
        if cfg.get("rl") == RL_TYPE:
            in_step(lambda: _made_ready(cfg, prepare_training(cfg)))
            _refuse_useless_training(cfg)
        elif resolved and resolved["task"] == "train":  # a step repeated with its train.yml
            in_step(lambda: _made_ready(cfg, "a step repeated with its train.yml"))
        elif block and not resolved:
            LOG.warning("the block `t_spin` has no effect without `rl: t_spin`")

    def get_input_args(self) -> str:
        return "axolotl_tspin.plugin.args.TSpinArgs"

    def get_training_args_mixin(self) -> str:
        return "axolotl_tspin.training.arguments.TSpinTrainingArgs"

    def get_training_args(self, cfg: Any) -> dict[str, Any] | None:
        run = _settings(cfg)
        if run is None:
            return None
        config, resolved = run
        return {
            "remove_unused_columns": False,
            "t_spin_alpha": config.alpha,
            "t_spin_beta": resolved.beta,
            "t_spin_loss": config.loss,
            "t_spin_layout": config.layout,
            "t_spin_max_tokens_per_row": (
                None if config.max_tokens_per_row == "auto" else config.max_tokens_per_row
            ),
            "t_spin_gradient_norms": config.gradient_norms,
        }

    def get_trainer_cls(self, cfg: Any) -> type | None:
        if _settings(cfg) is None:
            return None
        from axolotl_tspin.plugin.trainer import TSpinTrainer

        return TSpinTrainer

    def get_collator_cls_and_kwargs(self, cfg: Any, is_eval: bool = False) -> tuple | None:
        if _settings(cfg) is None:
            return None
        from axolotl_tspin.training.collator import TripletCollator

        return TripletCollator, {}

    def post_trainer_create(self, cfg: Any, trainer: Any) -> None:
        """Refuse to train an iteration again (only `axolotl train` calls this hook)."""
        self._post_train_calls = 0  # a process may train more than once
        run = _settings(cfg)
        if run is None or run[1].direct:
            return
        assert run[1].iteration is not None
        directory = RunDirectory(run[1].run_dir)
        # The train.yml of a repeated step does not record what was trained since.
        if run[1].already_trained or directory.step_of(run[1].iteration).step == "done":
            raise TSpinError(
                f"iteration {run[1].iteration} of the run in {run[1].run_dir} is trained already: "
                f"its policy is in {cfg.output_dir}. For further iterations raise "
                f"`t_spin.iterations` (now {run[0].iterations}); to train this one again, move its "
                "model folder and trained.json away"
            )
        from axolotl_tspin.diagnostics.model_card import write_model_card

        trainer.write_model_card = partial(write_model_card, directory, run[1].iteration, run[0])

    def add_callbacks_post_trainer(self, cfg: Any, trainer: Any) -> list[TrainerCallback]:
        run = _settings(cfg)
        if run is None:
            return []
        from axolotl_tspin.plugin.callbacks import Recorder

        config, resolved = run
        number = None if resolved.direct else resolved.iteration
        run_directory = RunDirectory(resolved.run_dir)
        self._recorder = Recorder(trainer, run_directory, number, config)
        if number is None:
            return [self._recorder]
        from axolotl_tspin.plugin.measuring import Measurer

        self._measurer = Measurer(
            trainer,
            run_directory,
            number,
            config,
            beta=resolved.beta,
            start_policy=run_directory.start_policy(number),
        )
        return [self._recorder, self._measurer]

    def post_train(self, cfg: Any, model: Any) -> None:
        """Mark the iteration trained. Axolotl calls this before and after it saves the model."""
        run = _settings(cfg)
        if run is None:
            return
        self._post_train_calls += 1
        config, resolved = run
        if self._post_train_calls < 2 or resolved.direct or rank() != 0:
            return
        assert resolved.iteration is not None
        from axolotl_tspin.diagnostics.figures import keep_figures
        from axolotl_tspin.diagnostics.findings import findings_of_run
        from axolotl_tspin.diagnostics.model_card import write_model_card
        from axolotl_tspin.training.finite import refuse_non_finite_files
        from axolotl_tspin.verdicts.evidence import keep_evidence
        from axolotl_tspin.verdicts.verdict import verdict_on_iteration

        directory = RunDirectory(resolved.run_dir)
        iteration = directory.iteration(resolved.iteration)
        iteration.check_trained()
        refuse_non_finite_files(iteration.model)
        trained = Policy(cfg.base_model, str(iteration.model)) if cfg.adapter else None
        fingerprint = policy_fingerprint(
            trained or Policy(str(iteration.model)), directory.fingerprints, cfg.revision_of_model
        )
        self._recorder.write_scores(fingerprint)
        self._measurer.write_after(fingerprint)
        iteration.mark_trained(
            {
                "iteration": resolved.iteration,
                "policy": fingerprint,
                "method": config.method,
                "loss": config.loss,
                "alpha": config.alpha,
                "beta": resolved.beta,
                "accepted_foreign": resolved.foreign,
                "finished": datetime.now(UTC).isoformat(timespec="seconds"),
                "log_history": self._recorder.log_history,
            }
        )
        LOG.info("T-SPIN: iteration %s is trained", resolved.iteration)
        keep_figures(directory, resolved.iteration, config)
        keep_evidence(directory, resolved.iteration, config)
        write_model_card(directory, resolved.iteration, config)
        for finding in findings_of_run(directory, config):
            if finding.iteration == resolved.iteration:
                LOG.warning("T-SPIN: %s", finding)
        if config.keep_models != "all":
            keep = 1 if config.keep_models == "last" else config.keep_models
            dropped = directory.drop_models_before(resolved.iteration + 1 - keep)
            if dropped:
                LOG.info("T-SPIN: keep_models: deleted the models of iterations %s", dropped)
        verdict = verdict_on_iteration(directory, resolved.iteration, config)
        LOG.info("T-SPIN: iteration %s: %s", resolved.iteration, verdict)


def _made_ready(cfg: dict, agreed: str) -> str:
    """Clear incomplete prepared rows, and return the text that ranks must agree on."""
    clear_half_prepared(cfg["dataset_prepared_path"])
    return agreed


def _refuse_useless_training(cfg: dict) -> None:
    resolved = cfg["t_spin"]["resolved"]
    if not (resolved["direct"] or resolved["already_trained"]):
        from axolotl_tspin.diagnostics.before_training import refuse_useless_training

        run, number = RunDirectory(resolved["run_dir"]), resolved["iteration"]
        refuse_useless_training(run, number, parse_t_spin(cfg))


def _settings(cfg: Any) -> tuple[TSpinConfig, ResolvedRun] | None:
    """Read the settings of a t_spin run; None for any other run."""
    block = cfg.get("t_spin")
    if not block or not block.get("resolved"):
        return None
    config = TSpinConfig.model_validate(block.to_dict())
    assert config.resolved is not None
    return config, config.resolved
