"""Model card (README.md) of a trained iteration, from the contents of the run directory."""

import json
from typing import Any

import yaml
from huggingface_hub import ModelCardData

from axolotl_tspin import __version__
from axolotl_tspin.config import TSpinConfig
from axolotl_tspin.diagnostics.evaluation import harness_scores
from axolotl_tspin.diagnostics.figures import read_figures
from axolotl_tspin.diagnostics.templates import template
from axolotl_tspin.run.directory import RunDirectory
from axolotl_tspin.run.files import write_atomically
from axolotl_tspin.run.public_names import on_the_hub, public_name
from axolotl_tspin.run.tables import read_metadata

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
    data = [_named(entry) for entry in identity["datasets"]]
    base_model = public_name(identity["base_model"])
    metadata = ModelCardData(
        base_model=base_model if on_the_hub(base_model) else None,
        datasets=[entry["path"] for entry in data if on_the_hub(entry["path"])] or None,
        library_name="peft" if training.get("adapter") else "transformers",
        pipeline_tag="text-generation",
        tags=["axolotl", "t-spin", "self-play"],
        ignore_metadata_errors=True,
    )
    scores = {"initial": harness_scores(run.path)} | {
        f"iteration {t}": harness_scores(run.iteration(t).path) for t in range(number + 1)
    }
    body = template("model_card.md.jinja").render(
        base_model=base_model,
        method=METHODS[record.get("method", config.method)],
        number=number,
        iterations=config.iterations,
        config=config,
        beta=record.get("beta", training["t_spin"]["resolved"]["beta"]),
        data=data,
        triplets=read_metadata(iteration.triplets("train"), verify=False),
        training={key: training[key] for key in TRAINING_KEYS if training.get(key) is not None},
        figures=read_figures(run, number) if is_trained else None,
        scores={name: found for name, found in scores.items() if found},
        adapter=bool(training.get("adapter")),
        policy=record.get("policy"),
        initial_policy=manifest["initial_policy"],
        foreign=record.get("accepted_foreign") or [],
        versions={"axolotl-tspin": __version__} | manifest["versions"],
    )
    return f"---\n{metadata.to_yaml()}\n---\n\n{body}\n"


def _named(entry: dict[str, Any]) -> dict[str, Any]:
    return entry | {"path": public_name(entry["path"])}
