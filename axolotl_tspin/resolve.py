"""From the YAML as the user wrote it to the YAML that Axolotl runs, for the iteration that is due.

Everything here works on the raw configuration, before Axolotl validates it, and changes it in
place. `rl: t_spin` is taken away in the process, so that a second pass changes nothing.
"""

import hashlib
from collections.abc import MutableMapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

import yaml
from axolotl.utils.data.shared import load_dataset_with_config
from axolotl.utils.dict import DictDefault
from axolotl.utils.logging import get_logger
from axolotl.utils.schemas.datasets import SFTDataset
from datasets.exceptions import DatasetsError
from pydantic import ValidationError

from axolotl_tspin import __version__
from axolotl_tspin.config import ResolvedRun, TSpinConfig, nearest_key_message
from axolotl_tspin.contradictions import (
    loses_small_steps,
    refuse_contradictions,
    without_effect,
)
from axolotl_tspin.errors import TSpinError
from axolotl_tspin.fingerprints import policy_fingerprint
from axolotl_tspin.generation.store import Prompts, check_reference, check_triplets
from axolotl_tspin.public_names import data_without_credentials, without_credentials
from axolotl_tspin.ranks import rank
from axolotl_tspin.run_directory import (
    Due,
    Iteration,
    Policy,
    RunDirectory,
    digest,
    write_atomically,
)
from axolotl_tspin.strategies import DATASET_KEYS, LOADING_KEYS, STRATEGY_KEYS
from axolotl_tspin.tables import read_metadata
from axolotl_tspin.yaml_shape import check_shape, parse_yaml

LOG = get_logger(__name__)

RL_TYPE = "t_spin"
STRATEGIES = "axolotl_tspin.strategies"
IDENTITY_KEYS = (
    "base_model",
    "revision_of_model",
    "adapter",
    "lora_model_dir",
    "tokenizer_config",
    "special_tokens",
    "tokens",
    "added_tokens_overrides",
    "chat_template",
    "chat_template_jinja",
    "chat_template_kwargs",
    "default_system_message",
    "eot_tokens",
    "sequence_len",
    "excess_length_strategy",
    "datasets",
    "test_datasets",
)
"""The keys that decide what a run's prompts, responses and policies mean."""

SUBSET_KEYS = ("dataset_shard_num", "dataset_shard_idx")
"""Axolotl's keys that take a part of the data; applied when prompts are frozen, not again."""

RawConfig = MutableMapping[str, Any]


class GenerationPlan(NamedTuple):
    """What a generation step has to do; `with_test`: the `test_datasets` lack responses too."""

    config: TSpinConfig
    run: RunDirectory
    due: Due
    policy: Policy
    initial_policy: Policy
    revision: str | None
    identity: dict[str, Any]
    with_test: bool

    def check_policy(self) -> str:
        """The fingerprint of the policy to sample from; see `check_start_policy`."""
        return check_start_policy(
            self.run,
            self.due.iteration,
            self.policy,
            self.revision,
            allow_foreign=self.config.allow_foreign,
        )


def read_yaml(path: str | Path) -> DictDefault:
    """A YAML as the user wrote it; TSpinError where it is not one of `rl: t_spin`."""
    content = parse_yaml(path)
    if content.get("rl") != RL_TYPE:
        raise TSpinError(f"{path}: `rl: {content.get('rl')}`; `axolotl t-spin` needs `rl: t_spin`")
    check_shape(content, f"{path}: ")
    return DictDefault(content)


def inspect_run(cfg: RawConfig) -> tuple[TSpinConfig, RunDirectory]:
    """A YAML's settings and its run directory, with nothing else looked at."""
    if not cfg.get("output_dir"):
        raise TSpinError("`output_dir` is missing from the YAML; `rl: t_spin` needs it")
    config = parse_t_spin(cfg)
    return config, RunDirectory(cfg["output_dir"], config.reference_window)


def parse_t_spin(cfg: RawConfig) -> TSpinConfig:
    """The `t_spin` block, or its defaults; TSpinError for what is wrong in it."""
    block = cfg.get("t_spin") or {}
    block = block.to_dict() if isinstance(block, DictDefault) else block
    try:
        return TSpinConfig.model_validate(block)
    except ValidationError as error:
        problems = [
            f"{'.'.join(['t_spin', *map(str, e['loc'])])}: {e['msg'].removeprefix('Value error, ')}"
            for e in error.errors()
        ]
        raise TSpinError("; ".join(problems)) from error


PARTITIONING_KEYS = ("deepspeed", "fsdp", "fsdp_config", "fsdp_version")
"""Those that spread one model over ranks. A process that samples holds all of its own, and Axolotl
would make it join a process group for them."""


def prepare_training(cfg: RawConfig) -> str:
    """Point Axolotl at the due iteration's triplets, policy and output folder.

    Returns:
        What was found, in words: the same on all ranks that see the same run directory.

    Raises:
        TSpinError: the iteration has no triplets yet, the run directory belongs to another
            configuration, or a setting contradicts T-SPIN.
    """
    config, run, initial, identity = _begin(cfg)
    for key in without_effect(cfg):
        LOG.warning("T-SPIN: `%s` has no effect: the triplet loss has no cross-entropy", key)
    if loses_small_steps(cfg):
        LOG.warning(
            "T-SPIN: with `bf16` and without DeepSpeed the weights themselves are bfloat16, and "
            "most steps of `learning_rate: %s` round away. Use DeepSpeed, which keeps them in "
            "float32 as well (examples/deepspeed/zero2.json, also on one GPU), or an adapter",
            cfg["learning_rate"],
        )
    if not run.exists():
        if not _have_responses(cfg, "datasets", config):
            raise TSpinError(
                f"nothing to train on yet: {run.path} holds no run, and the data sets do not all "
                f"have the columns '{config.field_synthetic}' and "
                f"'{config.field_proto_synthetic}'. Run `axolotl t-spin generate` with this YAML "
                "first"
            )
        if config.has_reference:
            raise TSpinError(
                f"`t_spin.method: {config.method}` needs log-probabilities under the policy that "
                f"the iteration starts from, which are kept in a run directory; {run.path} is "
                "none. Begin one with the data sets' responses: `axolotl t-spin import`"
            )
        _resolve(cfg, config, "train", run, initial, config.iteration, direct=True)
        cfg["dataset_prepared_path"] = _prepared_path(cfg, _data_files(cfg["datasets"]))
        LOG.info("T-SPIN: training on the data sets' own responses, into %s", cfg["output_dir"])
        return "the data sets' own responses"

    run.check_identity(identity)
    due = run.due(config.iterations, config.iteration)
    iteration = run.iteration(due.iteration)
    if due.step == "generate":
        sampled = all(iteration.triplets(split).exists() for split in run.splits())
        lacks = (
            f"lacks log-probabilities that `method: {config.method}` needs"
            if sampled
            else "has no triplets yet"
        )
        raise TSpinError(
            f"iteration {due.iteration} in {run.path} {lacks}: run `axolotl t-spin generate` with "
            "this YAML first. (To use an earlier iteration's policy instead, pin it with "
            "`t_spin.iteration`)"
        )
    done = due.step == "done"
    adapter = bool(cfg.get("adapter"))
    policy = run.policy_after(due.iteration - (not done), initial, adapter=adapter)
    foreign = [] if done else _check_triplets(cfg, config, run, due.iteration, policy)
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
    files = []
    for split, key in (("train", "datasets"), ("test", "test_datasets")):
        if split in run.splits():
            window = run.window(due.iteration, split, config.history_window)
            triplets = [run.iteration(t).triplets(split) for t in window]
            cfg[key] = [_triplets_entry(path) for path in triplets]
            files += triplets
    files += [path for _, path in run.references(due.iteration)]
    for key in SUBSET_KEYS:
        cfg.pop(key, None)
    start_from(cfg, policy, initial)
    cfg["output_dir"] = str(iteration.model)
    if cfg.get("lm_eval_tasks"):
        # Axolotl would start the harness on every rank, and after a failed training as well.
        cfg["lm_eval_post_train"] = False
    checkpoint = iteration.last_checkpoint()
    if checkpoint and not done and cfg.get("auto_resume_from_checkpoints") is not False:
        cfg["resume_from_checkpoint"] = cfg.get("resume_from_checkpoint") or str(checkpoint)
    cfg["dataset_prepared_path"] = _prepared_path(cfg, files)
    if not done and rank() == 0:
        _write_training_config(iteration.training_config, cfg)
    LOG.info(
        "T-SPIN iteration %s of %s (%sbeta %s)\n  triplets: %s\n  policy: %s\n  output: %s%s",
        due.iteration,
        config.iterations,
        "" if config.method == "t_spin" else f"method {config.method}, ",
        cfg["t_spin"]["resolved"]["beta"],
        ", ".join(entry["path"] for entry in cfg["datasets"]),
        policy,
        iteration.model,
        f"\n  resumed from: {cfg['resume_from_checkpoint']}"
        if cfg.get("resume_from_checkpoint")
        else "",
    )
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
    identity |= _data_digests([*cfg["datasets"], *(cfg.get("test_datasets") or [])])
    if run.exists():
        run.check_identity(identity)
    elif _have_responses(cfg, "datasets", config):
        raise TSpinError(
            "nothing to generate: the data sets already have their responses (the columns "
            f"'{config.field_synthetic}' and '{config.field_proto_synthetic}', or SPIN's "
            "`generated`). Train on them as they are with `axolotl train`, or begin a run with "
            "them with `axolotl t-spin import`. To sample from your own policy instead, leave "
            "these columns out, or read SPIN's rows with `type: t_spin.chat_template` and "
            "`field_messages: real`"
        )
    due = run.due(config.iterations, config.iteration)
    policy = run.policy_after(due.iteration - 1, initial, adapter=bool(cfg.get("adapter")))
    _resolve(cfg, config, "generate", run, initial, due.iteration)
    start_from(cfg, policy, initial)
    if not cfg.get("lora_model_dir"):
        cfg["adapter"] = None  # one that is still to be trained is no part of the policy
    cfg["inference"] = True
    for key in PARTITIONING_KEYS:
        cfg.pop(key, None)
    cfg["dataset_prepared_path"] = str(run.path / "prepared")
    with_test = bool(cfg.get("test_datasets")) and not (
        run.exists() or _have_responses(cfg, "test_datasets", config)
    )
    revision = cfg.get("revision_of_model")
    return GenerationPlan(config, run, due, policy, initial, revision, identity, with_test)


def prepare_import(cfg: RawConfig) -> GenerationPlan:
    """Point Axolotl at annotated data that already has its responses, to begin a run with.

    Raises:
        TSpinError: there is a run already, or the data sets have no responses.
    """
    config, run, initial, identity = _begin(cfg)
    identity |= _data_digests([*cfg["datasets"], *(cfg.get("test_datasets") or [])])
    if run.exists():
        raise TSpinError(f"{run.path} holds a run already; import into another `output_dir`")
    for key in ("datasets", "test_datasets"):
        if cfg.get(key) and not _have_responses(cfg, key, config):
            raise TSpinError(
                f"`{key}`: not all have the columns '{config.field_synthetic}' and "
                f"'{config.field_proto_synthetic}' (or `generated`, with `type: t_spin.spin`); "
                "there is nothing to import"
            )
    with_test = bool(cfg.get("test_datasets"))
    _resolve(cfg, config, "import", run, initial, 0)
    start_from(cfg, initial, initial)
    cfg["dataset_prepared_path"] = str(run.path / "prepared")
    revision = cfg.get("revision_of_model")
    due = Due(0, "generate")
    return GenerationPlan(config, run, due, initial, initial, revision, identity, with_test)


def _responses_differ(iteration: Iteration) -> bool:
    """Whether imported triplets have other synthetic than proto-synthetic responses."""
    metadata = read_metadata(iteration.triplets("train"), verify=False)
    return metadata.get("synthetic_is_not_proto_synthetic", 0) > 0


def _refuse_shared_evaluation(cfg: RawConfig, config: TSpinConfig) -> None:
    if config.history_window and cfg.get("val_set_size"):
        raise TSpinError(
            f"`val_set_size` with `t_spin.history_window: {config.history_window}`: a prompt is in "
            "the triplets of several iterations, so that it would be trained on and evaluated; "
            "give the evaluation a data set of its own with `test_datasets`"
        )


def _refuse_unmeasurable_gradients(cfg: RawConfig, config: TSpinConfig) -> None:
    """Before anything is sampled; the trainer refuses what is not seen in the YAML."""
    for key in ("deepspeed", "fsdp", "fsdp_config", "fp16"):
        if config.gradient_norms and cfg.get(key):
            raise TSpinError(
                f"`t_spin.gradient_norms` does not go with `{key}`: gradients are measured on one "
                "GPU or under DDP, in float32 or bfloat16. Remove one of them"
            )


def check_start_policy(
    run: RunDirectory,
    number: int,
    policy: Policy,
    revision: str | None,
    *,
    allow_foreign: bool,
) -> str:
    """The fingerprint of the policy that iteration `number` starts from.

    Raises:
        TSpinError: its weights are not those that the run began with or that the iteration before
            trained.
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
            f"({recorded}). Put these back; or go on with the ones that are there with "
            "`t_spin.allow_foreign: true`, which is recorded"
        )
    return fingerprint


def _check_triplets(
    cfg: RawConfig, config: TSpinConfig, run: RunDirectory, number: int, policy: Policy
) -> list[str]:
    """Refuse triplets that the run's policies did not sample; what `allow_foreign` let pass."""
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


def _write_training_config(path: Path, cfg: RawConfig) -> None:
    """The YAML as it is trained with: `axolotl train` on this file repeats the step."""
    text = yaml.safe_dump(_plain(dict(cfg)), sort_keys=False, allow_unicode=True)
    write_atomically(path, lambda temporary: temporary.write_text(text))


def start_from(cfg: RawConfig, policy: Policy, initial: Policy) -> None:
    """Load this policy, under the initial policy's tokenizer."""
    cfg["tokenizer_config"] = cfg.get("tokenizer_config") or initial.base_model
    cfg["base_model"] = policy.base_model
    if policy.adapter_dir:
        cfg["lora_model_dir"] = policy.adapter_dir


def _begin(cfg: RawConfig) -> tuple[TSpinConfig, RunDirectory, Policy, dict[str, Any]]:
    """What both tasks do first: check the YAML, and take T-SPIN's own names out of it."""
    check_shape(cfg)
    config = parse_t_spin(cfg)
    refuse_contradictions(cfg)
    _refuse_shared_evaluation(cfg, config)
    _refuse_unmeasurable_gradients(cfg, config)
    for key in ("base_model", "output_dir", "datasets", "sequence_len"):
        if not cfg.get(key):
            raise TSpinError(f"`{key}` is missing from the YAML; `rl: t_spin` needs it")
    identity = {key: _plain(cfg.get(key)) for key in IDENTITY_KEYS}
    for key in ("datasets", "test_datasets"):
        identity[key] = data_without_credentials(identity[key])
        for index, entry in enumerate(cfg.get(key) or []):
            _translate_entry(entry, f"{key}[{index}]")
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
    """Leave the outcome in `t_spin.resolved` and take `rl` away.

    Args:
        responses_differ: y′ is not y0 in iteration 0's triplets, which were imported so.
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


def _translate_entry(entry: RawConfig, where: str) -> None:
    """A `datasets:` entry with the strategy's module as its type and only keys Axolotl keeps."""
    kind = entry.get("type")
    known = [f"t_spin.{name}" for name in STRATEGY_KEYS]
    if kind not in known:
        raise TSpinError(
            f"`{where}.type: {kind}` is not a type of `rl: t_spin`; it is one of {', '.join(known)}"
        )
    strategy = str(kind).removeprefix("t_spin.")
    existing = [*SFTDataset.model_fields, *DATASET_KEYS]
    # Of the keys that load rows, this version of Axolotl may not have the newest.
    allowed = [k for k in (*LOADING_KEYS, *STRATEGY_KEYS[strategy]) if k in existing]
    for key in entry:
        if key in existing and key not in allowed:
            raise TSpinError(
                f"`{where}.{key}` has no effect with `type: {kind}`; remove it (keys that have "
                f"one: {', '.join(sorted(allowed))})"
            )
        if key not in allowed:
            raise TSpinError(nearest_key_message(key, allowed, f"`{where}`"))
    entry["type"] = f"{STRATEGIES}.{strategy}"
    for ours, carrier in DATASET_KEYS.items():
        if entry.get(ours) is not None:
            entry[carrier] = entry.pop(ours)


def _have_responses(cfg: RawConfig, key: str, config: TSpinConfig) -> bool:
    """Whether all of the data sets already have both generated responses."""
    for index, entry in enumerate(cfg[key]):
        names = load_data(cfg, entry, f"`{key}[{index}]`").column_names
        if isinstance(names, dict):
            names = names.get(entry.get("split") or "train") or next(iter(names.values()))
        is_spin = entry["type"].endswith(".spin") and "generated" in names
        if not is_spin and not {config.field_synthetic, config.field_proto_synthetic} <= set(names):
            return False
    return True


def load_data(cfg: RawConfig, entry: RawConfig, where: str) -> Any:
    """A data set, or its splits by name, as Axolotl loads them; TSpinError where it cannot.

    Args:
        where: what errors call the entry.
    """
    try:
        return load_dataset_with_config(
            DictDefault(entry), use_auth_token=bool(cfg.get("hf_use_auth_token"))
        )
    except (ValueError, OSError, ImportError, DatasetsError) as error:
        path = without_credentials(entry["path"])
        reason = " ".join(str(error).replace(entry["path"], path).split())[:300]
        raise TSpinError(
            f"{where}: the data in {path} cannot be loaded ({reason}). Expected a file "
            "(*.jsonl, *.parquet, …), a folder or a name on the hub: look at `path`, `split`, "
            "`name` and `data_files`"
        ) from error


def _triplets_entry(path: Path) -> DictDefault:
    return DictDefault(
        {
            "path": str(path),
            "ds_type": "parquet",
            "split": "train",
            "type": f"{STRATEGIES}.triplets",
        }
    )


def _prepared_path(cfg: RawConfig, files: list[Path]) -> str:
    """A folder for Axolotl's prepared data that changes whenever the rows would.

    Axolotl keys prepared data by its own configuration keys alone: not by content, and not by
    ours.
    """
    key = digest(
        [
            __version__,
            [_plain(cfg.get(name)) for name in (*IDENTITY_KEYS, "t_spin", "val_set_size")],
            [(str(f.resolve()), f.stat().st_size, f.stat().st_mtime_ns) for f in files],
        ]
    )
    return str(Path(cfg.get("dataset_prepared_path") or "last_run_prepared") / f"t_spin-{key}")


def _data_files(entries: list[RawConfig]) -> list[Path]:
    """The local files of data sets."""
    files: list[Path] = []
    for entry in entries:
        named = entry.get("data_files") or []
        for path in [entry.get("path"), *([named] if isinstance(named, str) else named)]:
            root = Path(path or "")
            files += sorted(p for p in root.rglob("*") if p.is_file()) if root.is_dir() else []
            files += [root] if root.is_file() else []
    return files


def _data_digests(entries: list[RawConfig]) -> dict[str, str]:
    """SHA-256 of every local file of the data sets."""
    digests = {}
    for path in _data_files(entries):
        with open(path, "rb") as file:
            digests[f"data file {path}"] = hashlib.file_digest(file, "sha256").hexdigest()
    return digests


def _plain(value: Any) -> Any:
    if isinstance(value, DictDefault):
        return value.to_dict()
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return value
