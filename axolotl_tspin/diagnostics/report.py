"""`axolotl t-spin report`: one self-contained HTML page, and its pictures as PNGs.

Everything comes from files of the run directory; no policy is loaded.
"""

import base64
import json
import os
from collections.abc import Sequence
from datetime import UTC, datetime
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from axolotl_tspin import __version__
from axolotl_tspin.config import TSpinConfig
from axolotl_tspin.diagnostics.evaluation import TaskScore, harness_scores
from axolotl_tspin.diagnostics.figures import run_figures
from axolotl_tspin.diagnostics.findings import Finding, findings_of_run
from axolotl_tspin.diagnostics.plots import PICTURES, RunData
from axolotl_tspin.diagnostics.status import dropped_text
from axolotl_tspin.diagnostics.templates import template
from axolotl_tspin.errors import TSpinError
from axolotl_tspin.resolve.yaml_file import inspect_run, read_yaml
from axolotl_tspin.run.directory import RunDirectory
from axolotl_tspin.run.files import write_atomically
from axolotl_tspin.run.public_names import data_without_credentials
from axolotl_tspin.run.tables import read_metadata
from axolotl_tspin.run.triplets import iterate_triplets

SAMPLES = 3
"""Number of prompts shown through all iterations (table 5 of the paper)."""


class SampledPrompt(NamedTuple):
    """One prompt through the run; `synthetic` holds pairs (iteration that sampled it, text)."""

    row: int
    prompt: str
    annotated: str
    proto_synthetic: str
    synthetic: list[tuple[int, str]]


class RunReport(NamedTuple):
    """A run's data for the template."""

    data: RunData
    path: str
    iterations: int
    findings: list[Finding]
    samples: list[SampledPrompt]
    settings: dict[str, Any]
    provenance: dict[str, str]
    scores: list[tuple[str, list[TaskScore]]]


def write_report(configs: Sequence[Path], out: Path) -> list[Path]:
    """Write the page and its pictures.

    Args:
        configs: the runs' YAMLs, shown side by side.
        out: the page; the pictures go into a folder next to it, `<stem>_figures`.

    Returns:
        The files written.

    Raises:
        TSpinError: a run has no trained iteration yet, or a YAML is named twice.
    """
    runs = [
        report_of_run(config, name) for config, name in zip(configs, _names(configs), strict=True)
    ]
    folder = out.with_name(f"{out.stem}_figures")
    written = []
    pictures: dict[str, str | None] = dict.fromkeys(PICTURES)
    for name, draw in PICTURES.items():
        png = draw([run.data for run in runs])
        if png is not None:
            path = folder / f"{name}.png"
            write_atomically(path, partial(_write_bytes, png))
            pictures[name] = base64.b64encode(png).decode()
            written.append(path)
    page = template("report.html.jinja").render(
        runs=runs,
        pictures=pictures,
        version=__version__,
        made=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
    )
    write_atomically(out, lambda temporary: temporary.write_text(page, encoding="utf-8"))
    return [out, *written]


def report_of_run(config_path: Path, name: str) -> RunReport:
    """Read a run.

    Raises:
        TSpinError: the run has no trained iteration yet.
    """
    raw = read_yaml(config_path)
    config, run = inspect_run(raw)
    figures = run_figures(run, config)
    if not figures:
        raise TSpinError(
            f"{config_path}: no iteration of the run in {run.path} is trained yet; there is "
            "nothing to report"
        )
    numbers = [f.iteration for f in figures]
    scores = {-1: harness_scores(run.path)} | {
        t: harness_scores(run.iteration(t).path) for t in numbers
    }
    scores = {t: found for t, found in scores.items() if found}
    logs = [run.iteration(t).training_log()[0] for t in numbers]
    return RunReport(
        data=RunData(name, figures, logs, scores),
        path=str(run.path),
        iterations=config.iterations,
        findings=findings_of_run(run, config),
        samples=samples_of_run(run, numbers),
        settings=shown_settings(raw, config),
        provenance=provenance_of_run(run, numbers),
        scores=[("initial" if t < 0 else f"after {t}", scores[t]) for t in sorted(scores)],
    )


def samples_of_run(run: RunDirectory, iterations: Sequence[int]) -> list[SampledPrompt]:
    """Read the same few prompts in every iteration's triplets."""
    columns = ["prompt", "annotated", "proto_synthetic", "synthetic", "synthetic_iteration"]
    by_iteration = [
        list(islice(iterate_triplets(run.iteration(t).triplets("train"), columns), SAMPLES))
        for t in iterations
    ]
    samples = []
    for row, versions in enumerate(zip(*by_iteration, strict=True)):
        first = versions[0]
        # A prompt that was not selected keeps its response, which is shown once.
        synthetic = dict.fromkeys((v["synthetic_iteration"], v["synthetic"]) for v in versions)
        samples.append(
            SampledPrompt(
                row,
                first["prompt"],
                first["annotated"],
                first["proto_synthetic"],
                [pair for pair in synthetic if pair[0] > 0],
            )
        )
    return samples


def shown_settings(raw: Any, config: TSpinConfig) -> dict[str, Any]:
    """Collect the settings that decide a run's result, as YAML."""
    keys = (
        "base_model",
        "adapter",
        "datasets",
        "sequence_len",
        "chat_template",
        "micro_batch_size",
        "gradient_accumulation_steps",
        "num_epochs",
        "max_steps",
        "learning_rate",
        "lr_scheduler",
        "optimizer",
        "warmup_ratio",
        "weight_decay",
        "seed",
    )
    block = config.model_dump(exclude_none=True, exclude={"resolved"})
    defaults = TSpinConfig().model_dump(exclude_none=True, exclude={"resolved"})
    changed = {k: v for k, v in block.items() if k != "generation" and v != defaults[k]}
    generation = {
        k: v for k, v in block["generation"].items() if v != defaults["generation"].get(k)
    }
    always = {name: block[name] for name in ("method", "alpha", "beta", "loss", "iterations")}
    sampling = {n: block["generation"][n] for n in ("backend", "temperature", "max_new_tokens")}
    plain = raw.to_dict() if hasattr(raw, "to_dict") else dict(raw)
    shown = {"t_spin": always | changed | {"generation": sampling | generation}}
    shown |= {key: plain[key] for key in keys if plain.get(key) is not None}
    shown["datasets"] = data_without_credentials(shown.get("datasets"))
    return {
        key: yaml.safe_dump(json.loads(json.dumps(value)), allow_unicode=True).removesuffix("...\n")
        for key, value in shown.items()
    }


def provenance_of_run(run: RunDirectory, iterations: Sequence[int]) -> dict[str, str]:
    """Collect versions, and the origin of the responses and policies."""
    manifest = json.loads(run.manifest.read_text())
    rows = {"initial policy": manifest["initial_policy"]}
    if dropped := dropped_text(run.dropped()):
        rows["data"] = dropped
    for t in iterations:
        metadata = read_metadata(run.iteration(t).triplets("train"), verify=False)
        record = run.iteration(t).training_record()
        accepted = record.get("accepted_foreign")
        rows[f"iteration {t}"] = (
            f"{metadata['rows']} triplets, {metadata['sampled']} sampled in "
            f"{metadata['seconds']:.0f} s by policy {metadata['policy']}; trained to policy "
            f"{record['policy']}"
            + (f" ({record['finished']})" if "finished" in record else "")
            + (f"; accepted: {'; '.join(accepted)}" if accepted else "")
        )
    rows["versions"] = ", ".join(f"{k} {v}" for k, v in manifest["versions"].items())
    return rows


def _write_bytes(content: bytes, path: Path) -> None:
    path.write_bytes(content)


def _names(configs: Sequence[Path]) -> list[str]:
    """Give runs short distinct names: the YAMLs' stems, or their paths if stems are equal."""
    if len({config.resolve() for config in configs}) < len(configs):
        raise TSpinError("one YAML is named twice; name each run once")
    stems = [config.stem for config in configs]
    if len(set(stems)) == len(stems):
        return stems
    root = os.path.commonpath([config.resolve().parent for config in configs])
    return [os.path.relpath(config.resolve().with_suffix(""), root) for config in configs]
