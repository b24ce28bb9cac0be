"""Model card (README.md) of a trained iteration, from the contents of the run directory."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import EvalResult, ModelCard, ModelCardData, try_to_load_from_cache

from axolotl_tspin import __version__
from axolotl_tspin.config import TSpinConfig
from axolotl_tspin.diagnostics.evaluation import TaskScore, harness_scores
from axolotl_tspin.diagnostics.figures import read_figures
from axolotl_tspin.diagnostics.templates import template
from axolotl_tspin.run.directory import RunDirectory
from axolotl_tspin.run.files import write_atomically
from axolotl_tspin.run.public_names import on_the_hub, public_name
from axolotl_tspin.run.tables import read_metadata
from axolotl_tspin.verdicts.evidence import Evidence, evidence_since_start
from axolotl_tspin.verdicts.verdict import PER_TOKEN, verdict_of

TRAINING_KEYS = (
    "learning_rate",
    "lr_scheduler",
    "optimizer",
    "warmup_ratio",
    "weight_decay",
    "num_epochs",
    "max_steps",
    "micro_batch_size",
    "gradient_accumulation_steps",
    "sequence_len",
    "adapter",
    "lora_r",
    "lora_alpha",
    "bf16",
    "seed",
)
MEASURED = {
    PER_TOKEN: "log π(annotated) per token",
    "logps/annotated": "log π(annotated)",
    "accuracy": "accuracy",
    "order_per_token": "annotated likelier than its own response, per token",
    "length_ratio": "tokens written, relative to the annotated",
    "cut": "share cut at the limit",
    "repetition": "share of repeated 4-grams",
}
"""Figures shown, with their titles."""

METHODS = {
    "t_spin": "T-SPIN (eq. 7)",
    "no_history": "T-SPIN without the historical term",
    "spin": "SPIN (eq. 3)",
    "t_spin_ref": "T-SPIN with reference-based rewards (eq. 9)",
}


def write_model_card(run: RunDirectory, number: int, config: TSpinConfig) -> None:
    """Write README.md into an iteration's model folder, if it still has one.

    This is called when the policy is saved, when the iteration is marked trained, and when there
    are new scores of lm-evaluation-harness. Each time the card holds what is known by then.
    """
    folder = run.iteration(number).model
    if folder.is_dir():
        text = model_card(run, number, config)
        write_atomically(folder / "README.md", lambda path: path.write_text(text, encoding="utf-8"))


def model_card(run: RunDirectory, number: int, config: TSpinConfig) -> str:
    """Render the card's text, with the hub's metadata in front."""
    manifest = json.loads(run.manifest.read_text())
    identity = manifest["identity"]
    iteration = run.iteration(number)
    training = yaml.safe_load(iteration.training_config.read_text())
    is_trained = iteration.trained_marker.exists()
    record = iteration.training_record() if is_trained else {}
    method = record.get("method", config.method)
    data = [_named(entry) for entry in identity["datasets"]]
    base_model = public_name(identity["base_model"])
    scores = {"initial": harness_scores(run.path)} | {
        f"iteration {t}": harness_scores(run.iteration(t).path) for t in range(number + 1)
    }
    evidence = evidence_since_start(run, number + 1, config) if is_trained else None
    name = f"{base_model.split('/')[-1]}, {METHODS[method].split(' (')[0]} iteration {number}"
    metadata = ModelCardData(
        model_name=name,
        base_model=base_model if on_the_hub(base_model) else None,
        license=license_of(identity["base_model"]),
        eval_results=[
            *_held_out_results(evidence, data[0]["path"]),
            *_benchmark_results(scores.get(f"iteration {number}", [])),
        ]
        or None,
        datasets=[entry["path"] for entry in data if on_the_hub(entry["path"])] or None,
        library_name="peft" if training.get("adapter") else "transformers",
        pipeline_tag="text-generation",
        tags=["axolotl", "t-spin", "self-play"],
        ignore_metadata_errors=True,
    )
    body = template("model_card.md.jinja").render(
        name=name,
        base_model=base_model,
        method=METHODS[method],
        number=number,
        iterations=config.iterations,
        config=config,
        beta=record.get("beta", training["t_spin"]["resolved"]["beta"]),
        data=data,
        triplets=read_metadata(iteration.triplets("train"), verify=False),
        training={key: training[key] for key in TRAINING_KEYS if training.get(key) is not None},
        figures=read_figures(run, number) if is_trained else None,
        scores={of: found for of, found in scores.items() if found},
        verdict=verdict_of(evidence) if evidence else None,
        evidence=evidence,
        measures={
            title: evidence.figure(measure)
            for measure, title in MEASURED.items()
            if evidence and evidence.figure(measure).before is not None
        },
        adapter=bool(training.get("adapter")),
        policy=record.get("policy"),
        initial_policy=manifest["initial_policy"],
        foreign=record.get("accepted_foreign") or [],
        versions={"axolotl-tspin": __version__} | manifest["versions"],
    )
    return f"---\n{metadata.to_yaml()}\n---\n\n{body}\n"


def license_of(base_model: str) -> str | None:
    """Read the licence that a base model's card names, from its folder or the hub's cache; None if
    it names none, or is not here."""
    path: Any = Path(base_model) / "README.md"
    try:
        if not path.exists():
            path = try_to_load_from_cache(base_model, "README.md")
        if not isinstance(path, (str, Path)):
            return None
        found = ModelCard.load(path, ignore_metadata_errors=True).data.license
    except (OSError, ValueError):  # also of names that are not the hub's
        return None
    return found if isinstance(found, str) else None


def _held_out_results(evidence: Evidence | None, data: str) -> list[EvalResult]:
    if evidence is None or not evidence.held_out:
        return []
    return [
        EvalResult(
            task_type="text-generation",
            dataset_type=data,
            dataset_name=data,
            dataset_split="held out",
            metric_type=kind,
            metric_name=title,
            metric_value=round(value, 4),
        )
        for kind, title in (("accuracy", "accuracy"), (PER_TOKEN, MEASURED[PER_TOKEN]))
        if (value := evidence.figure(kind).after) is not None
    ]


def _benchmark_results(scores: Sequence[TaskScore]) -> list[EvalResult]:
    return [
        EvalResult(
            task_type="text-generation",
            dataset_type=score.task,
            dataset_name=score.task,
            metric_type=score.metric.split(",")[0],
            metric_value=round(score.value, 4),
        )
        for score in scores
    ]


def _named(entry: dict[str, Any]) -> dict[str, Any]:
    return entry | {"path": public_name(entry["path"])}
