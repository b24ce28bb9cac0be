"""Translation of the user's YAML to the YAML that Axolotl runs, for the step that is due.

Everything here works on the raw configuration, before Axolotl validates it, and changes it in
place. `rl: t_spin` is removed in the process, so a second pass changes nothing.
"""

from pathlib import Path
from typing import Any, Literal

import yaml
from axolotl.utils.dict import DictDefault

from axolotl_tspin import __version__
from axolotl_tspin.config import ResolvedRun, TSpinConfig
from axolotl_tspin.errors import TSpinError
from axolotl_tspin.logs import get_logger
from axolotl_tspin.resolve.data_sets import (
    data_digests,
    data_files,
    have_responses,
    load_data,
    translate_entry,
    triplets_entry,
)
from axolotl_tspin.resolve.generation_plan import GenerationPlan, final_samples_are_due
from axolotl_tspin.resolve.identity import IDENTITY_KEYS, identity_of
from axolotl_tspin.resolve.policies import accepted_triplets, start_from
from axolotl_tspin.resolve.precision import name_the_precision_of_cpus, sample_in_training_precision
from axolotl_tspin.resolve.refusals import (
    loses_small_steps,
    refuse_contradictions,
    refuse_unmeasurable_gradients,
    without_effect,
)
from axolotl_tspin.resolve.yaml_file import RawConfig, check_shape, parse_t_spin, plain
from axolotl_tspin.run.directory import Due, Iteration, Policy, RunDirectory
from axolotl_tspin.run.files import digest, write_atomically
from axolotl_tspin.run.ranks import rank
from axolotl_tspin.run.settings import changed_settings
from axolotl_tspin.run.tables import read_metadata

LOG = get_logger(__name__)

SUBSET_KEYS = ("dataset_shard_num", "dataset_shard_idx")
"""Axolotl's keys that select a part of the data. They are applied once, when prompts are frozen."""

PARTITIONING_KEYS = ("deepspeed", "fsdp", "fsdp_config", "fsdp_version")
"""Keys that spread one model over ranks.

A process that samples holds a whole model. With these keys Axolotl would make it join a process
group."""


def prepare_training(cfg: RawConfig) -> str:
    """Point Axolotl at the due iteration's triplets, policy and output folder.

    Returns:
        A description of the step, the same on all ranks that see the same run directory.

    Raises:
        TSpinError: the iteration has no triplets yet, the run directory belongs to another
            configuration, or a setting contradicts T-SPIN.
    """
    config, run, initial, identity = _begin(cfg)
    _warn_of_settings(cfg)
    if not run.exists():
        return _prepare_direct_training(cfg, config, run, initial)
    run.check_identity(identity)
    due = run.due(config.iterations, config.iteration)
    if due.step == "generate":
        raise TSpinError(_what_lacks(config, run, due.iteration))
    iteration, done = run.iteration(due.iteration), due.step == "done"
    policy = run.policy_after(due.iteration - (not done), initial, adapter=bool(cfg.get("adapter")))
    foreign = [] if done else accepted_triplets(cfg, config, run, due.iteration, policy)
    _resolve(
        cfg,
        config,
        "train",
        run,
        initial,
        due.iteration,
        responses_differ=_responses_differ(iteration),
        already_trained=done,
        foreign=foreign,
    )
    files = _point_at_triplets(cfg, config, run, due.iteration)
    start_from(cfg, policy, initial)
    cfg["output_dir"] = str(iteration.model)
    if cfg.get("lm_eval_tasks"):
        # Axolotl would start the harness on every rank, and after a failed training as well.
        cfg["lm_eval_post_train"] = False
    if changes := changed_settings(run, due, cfg):
        LOG.warning("T-SPIN: changed %s", changes)
    checkpoint = iteration.last_checkpoint()
    if checkpoint and not done and cfg.get("auto_resume_from_checkpoints") is not False:
        cfg["resume_from_checkpoint"] = cfg.get("resume_from_checkpoint") or str(checkpoint)
    cfg["dataset_prepared_path"] = _prepared_path(cfg, files)
    if not done and rank() == 0:
        _write_training_config(iteration.training_config, cfg)
    _log_training(cfg, config, due.iteration, policy)
    if done:
        return f"iteration {due.iteration}, which is trained"
    size = sum(path.stat().st_size for path in files)
    resumed = Path(cfg.get("resume_from_checkpoint") or "no checkpoint").name
    return f"iteration {due.iteration}, {size} bytes of triplets and {resumed}"


def prepare_generation(cfg: RawConfig) -> GenerationPlan:
    """Point Axolotl at the annotated data and the policy that the due iteration samples from.

    Raises:
        TSpinError: as for training, or the data sets already have their responses.
    """
    config, run, initial, identity = _begin(cfg)
    identity |= data_digests([*cfg["datasets"], *(cfg.get("test_datasets") or [])])
    if run.exists():
        run.check_identity(identity)
    elif have_responses(cfg, "datasets", config):
        raise TSpinError(
            "nothing to generate: the data sets already have their responses (the columns "
            f"'{config.field_synthetic}' and '{config.field_proto_synthetic}', or SPIN's "
            "`generated`). Train on them as they are with `axolotl train`, or begin a run with "
            "them with `axolotl t-spin import`. To sample from your own policy instead, leave "
            "these columns out, or read SPIN's rows with `type: t_spin.chat_template` and "
            "`field_messages: real`"
        )
    due = run.due(config.iterations, config.iteration)
    if final_samples_are_due(config, run):
        due = Due(config.iterations, "generate")
    policy = run.policy_after(due.iteration - 1, initial, adapter=bool(cfg.get("adapter")))
    _resolve(cfg, config, "generate", run, initial, due.iteration)
    start_from(cfg, policy, initial)
    partitioning = [cfg.pop(key, None) for key in PARTITIONING_KEYS]
    sample_in_training_precision(cfg, partitioned=any(partitioning))
    cfg["inference"] = True
    cfg["dataset_prepared_path"] = str(run.path / "prepared")
    with_test = bool(cfg.get("test_datasets")) and not (
        run.exists() or have_responses(cfg, "test_datasets", config)
    )
    return GenerationPlan(
        config,
        run,
        due,
        policy,
        initial,
        cfg.get("revision_of_model"),
        identity,
        with_test,
        *_held_out(cfg, config),
    )


def _held_out(cfg: RawConfig, config: TSpinConfig) -> tuple[int | str, float | None]:
    """The keys that hold rows out; `test_datasets` take the place of both."""
    return (0, None) if cfg.get("test_datasets") else (config.held_out, cfg.get("val_set_size"))


def prepare_import(cfg: RawConfig) -> GenerationPlan:
    """Point Axolotl at annotated data that already has responses, to begin a run with.

    Raises:
        TSpinError: there is a run already, or the data sets have no responses.
    """
    config, run, initial, identity = _begin(cfg)
    identity |= data_digests([*cfg["datasets"], *(cfg.get("test_datasets") or [])])
    if run.exists():
        raise TSpinError(f"{run.path} holds a run already; import into another `output_dir`")
    for key in ("datasets", "test_datasets"):
        if cfg.get(key) and not have_responses(cfg, key, config):
            raise TSpinError(
                f"`{key}`: not all have the columns '{config.field_synthetic}' and "
                f"'{config.field_proto_synthetic}' (or `generated`, with `type: t_spin.spin`); "
                "there is nothing to import"
            )
    with_test = bool(cfg.get("test_datasets"))
    _resolve(cfg, config, "import", run, initial, 0)
    start_from(cfg, initial, initial)
    cfg["dataset_prepared_path"] = str(run.path / "prepared")
    return GenerationPlan(
        config,
        run,
        Due(0, "generate"),
        initial,
        initial,
        cfg.get("revision_of_model"),
        identity,
        with_test,
        *_held_out(cfg, config),
    )


def _warn_of_settings(cfg: RawConfig) -> None:
    for key in without_effect(cfg):
        LOG.warning("T-SPIN: `%s` has no effect: the triplet loss has no cross-entropy", key)
    if loses_small_steps(cfg):
        LOG.warning(
            "T-SPIN: with `bf16` and without DeepSpeed the weights themselves are bfloat16, and "
            "most steps of `learning_rate: %s` round away. Use DeepSpeed, which keeps them in "
            "float32 as well (examples/deepspeed/zero2.json, also on one GPU), or an adapter",
            cfg["learning_rate"],
        )


def _prepare_direct_training(
    cfg: RawConfig, config: TSpinConfig, run: RunDirectory, initial: Policy
) -> str:
    """Train on the responses that the data sets have, without a run directory."""
    if not have_responses(cfg, "datasets", config):
        raise TSpinError(
            f"nothing to train on yet: {run.path} holds no run, and the data sets do not all "
            f"have the columns '{config.field_synthetic}' and "
            f"'{config.field_proto_synthetic}'. Run `axolotl t-spin generate` with this YAML "
            "first"
        )
    if config.has_reference:
        raise TSpinError(
            f"`t_spin.method: {config.method}` needs log-probabilities under the policy that "
            f"the iteration starts from, which are kept in a run directory; {run.path} is not "
            "one. Begin one with the data sets' responses: `axolotl t-spin import`"
        )
    tests = cfg.get("test_datasets") or []
    for index, entry in enumerate(tests):
        load_data(cfg, entry, f"`test_datasets[{index}]`")
    _resolve(cfg, config, "train", run, initial, config.iteration, direct=True)
    cfg["dataset_prepared_path"] = _prepared_path(cfg, data_files([*cfg["datasets"], *tests]))
    LOG.info("T-SPIN: training on the data sets' own responses, into %s", cfg["output_dir"])
    return "the data sets' own responses"


def _what_lacks(config: TSpinConfig, run: RunDirectory, number: int) -> str:
    sampled = all(run.iteration(number).triplets(split).exists() for split in run.splits())
    lacks = (
        f"lacks log-probabilities that `method: {config.method}` needs"
        if sampled
        else "has no triplets yet"
    )
    return (
        f"iteration {number} in {run.path} {lacks}: run `axolotl t-spin generate` with "
        "this YAML first. (To use an earlier iteration's policy instead, pin it with "
        "`t_spin.iteration`)"
    )


def _point_at_triplets(
    cfg: RawConfig, config: TSpinConfig, run: RunDirectory, number: int
) -> list[Path]:
    """Put triplets in place of the data sets; return the files that decide what the rows are."""
    files = []
    is_evaluated = cfg.get("test_datasets") or cfg.get("val_set_size")
    for split, key in (("train", "datasets"), ("test", "test_datasets")):
        if split in run.splits() and (split == "train" or is_evaluated):
            window = run.window(number, split, config.history_window)
            triplets = [run.iteration(t).triplets(split) for t in window]
            cfg[key] = [triplets_entry(path) for path in triplets]
            files += triplets
    if "test" in run.splits():
        cfg["val_set_size"] = 0  # these prompts were held out when they were frozen
    for key in SUBSET_KEYS:
        cfg.pop(key, None)
    return [*files, *(path for _, path in run.references(number))]


def _log_training(cfg: RawConfig, config: TSpinConfig, number: int, policy: Policy) -> None:
    resumed = cfg.get("resume_from_checkpoint")
    LOG.info(
        "T-SPIN iteration %s of 0 to %s (%sbeta %s)\n  triplets: %s\n  policy: %s\n  output: %s%s",
        number,
        config.iterations - 1,
        "" if config.method == "t_spin" else f"method {config.method}, ",
        cfg["t_spin"]["resolved"]["beta"],
        ", ".join(entry["path"] for entry in cfg["datasets"]),
        policy,
        cfg["output_dir"],
        f"\n  resumed from: {resumed}" if resumed else "",
    )


def _responses_differ(iteration: Iteration) -> bool:
    """True if imported triplets have synthetic responses that differ from their proto-synthetic
    ones."""
    metadata = read_metadata(iteration.triplets("train"), verify=False)
    return metadata.get("synthetic_is_not_proto_synthetic", 0) > 0


def _begin(cfg: RawConfig) -> tuple[TSpinConfig, RunDirectory, Policy, dict[str, Any]]:
    """Check the YAML, and translate T-SPIN's own names in it; every task does this first."""
    check_shape(cfg)
    config = parse_t_spin(cfg)
    refuse_contradictions(cfg)
    refuse_unmeasurable_gradients(cfg, config)
    name_the_precision_of_cpus(cfg)
    for key in ("base_model", "output_dir", "datasets", "sequence_len"):
        if not cfg.get(key):
            raise TSpinError(f"`{key}` is missing from the YAML; `rl: t_spin` needs it")
    identity = identity_of(cfg, config)
    for key in ("datasets", "test_datasets"):
        for index, entry in enumerate(cfg.get(key) or []):
            translate_entry(entry, f"{key}[{index}]")
    initial = Policy(cfg["base_model"], cfg.get("lora_model_dir"))
    run = RunDirectory(cfg["output_dir"], config.reference_window)
    return config, run, initial, identity


def _resolve(
    cfg: RawConfig,
    config: TSpinConfig,
    task: Literal["train", "generate", "import"],
    run: RunDirectory,
    initial: Policy,
    iteration: int | None,
    *,
    responses_differ: bool = False,
    **flags: Any,
) -> None:
    """Write the result to `t_spin.resolved` and remove `rl`.

    Args:
        responses_differ: True if y′ is not y0 in iteration 0's triplets, as after some imports.
    """
    beta = config.beta if config.has_history else 0.0
    if iteration == 0 and beta and not (responses_differ or config.historical_at_iteration_0):
        beta = 0.0
        if task == "train":
            LOG.info(
                "T-SPIN: the historical term is off at iteration 0, where synthetic and "
                "proto-synthetic responses are the same (force it with "
                "`t_spin.historical_at_iteration_0: true`)"
            )
    resolved = ResolvedRun(
        task=task,
        iteration=iteration,
        beta=beta,
        initial_policy=str(initial),
        run_dir=str(run.path),
        **flags,
    )
    block = config.model_copy(update={"resolved": resolved}).model_dump(exclude_none=True)
    cfg["t_spin"] = DictDefault(block)
    cfg.pop("rl")


def _prepared_path(cfg: RawConfig, files: list[Path]) -> str:
    """Name a folder for Axolotl's prepared data that changes whenever the rows would.

    Axolotl keys prepared data only by its own configuration keys, not by the data's content or by
    our keys.
    """
    key = digest(
        [
            __version__,
            [plain(cfg.get(name)) for name in (*IDENTITY_KEYS, "t_spin")],
            [(str(f.resolve()), f.stat().st_size, f.stat().st_mtime_ns) for f in files],
        ]
    )
    return str(Path(cfg.get("dataset_prepared_path") or "last_run_prepared") / f"t_spin-{key}")


def _write_training_config(path: Path, cfg: RawConfig) -> None:
    """Write the YAML that is trained with; `axolotl train` on this file repeats the step."""
    text = yaml.safe_dump(plain(dict(cfg)), sort_keys=False, allow_unicode=True)
    write_atomically(path, lambda temporary: temporary.write_text(text))
