"""`axolotl t-spin report`: one self-contained HTML page about one or several runs.

Everything comes from files of the run directories; no policy is loaded.
"""

import json
import os
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from axolotl_tspin import __version__
from axolotl_tspin.config import TSpinConfig
from axolotl_tspin.diagnostics.charts import charts_of
from axolotl_tspin.diagnostics.findings import Finding
from axolotl_tspin.diagnostics.run_data import RunData, read_run
from axolotl_tspin.diagnostics.samples import Samples, samples_of_run
from axolotl_tspin.diagnostics.status import dropped_text
from axolotl_tspin.diagnostics.templates import template
from axolotl_tspin.diagnostics.tiles import Tile, costs_of_run, tiles_of_run
from axolotl_tspin.errors import TSpinError
from axolotl_tspin.resolve.yaml_file import inspect_run, plain, read_keys
from axolotl_tspin.run.directory import RunDirectory
from axolotl_tspin.run.files import write_atomically
from axolotl_tspin.run.public_names import public_name, without_credentials
from axolotl_tspin.run.tables import read_metadata
from axolotl_tspin.verdicts.verdict import Verdict, verdict_of

CHARTS_OF_SIGNS = {
    "annotated below synthetic": "gap",
    "collapse": "policies",
    "length explosion": "lengths",
    "responses cut": "cut",
    "saturated": "saturation",
    "worse": "policies",
}
"""The chart that shows what a warning is about; an anchor's origin has none."""


class Warned(NamedTuple):
    """Warnings of one sign.

    Attributes:
        findings: the warnings, by iteration.
        chart: the name of the chart concerned, if the page has it.
        patch: YAML to try, if the remedy is a key.
    """

    sign: str
    findings: list[Finding]
    chart: str | None
    patch: str | None


class Line(NamedTuple):
    """What an iteration came to: a verdict, or else what is known of it."""

    iteration: int
    verdict: Verdict | None
    state: str


class Trained(NamedTuple):
    """The last trained policy: its folder in the run directory, and Python that loads it from
    there; no snippet if the folder is gone."""

    folder: str
    snippet: str | None


class RunReport(NamedTuple):
    """A run's part of the page."""

    data: RunData
    folder: str
    verdict: Verdict | None
    lines: list[Line]
    model: Trained | None
    tiles: list[Tile]
    costs: dict[str, str]
    warned: list[Warned]
    samples: Samples
    settings: dict[str, str]
    provenance: dict[str, str]


def write_report(
    configs: Sequence[Path], out: Path | None = None, *, reloads: bool = False
) -> Path:
    """Write the page.

    Args:
        configs: the runs' YAMLs, shown side by side.
        out: the page; by default `report.html`, in the run directory if there is one run, in the
            current folder if there are several.
        reloads: the page reads itself again every few seconds.

    Returns:
        The page's path.

    Raises:
        TSpinError: a run has not begun, or a YAML is named twice.
    """
    out = out or default_page(configs)
    names = _names(configs)
    runs = [read_run(config, name) for config, name in zip(configs, names, strict=True)]
    charts = charts_of(runs)
    page = template("report.html.jinja").render(
        runs=[report_of_run(data, {chart.name for chart in charts}) for data in runs],
        charts=charts,
        reloads=reloads,
        version=__version__,
        made=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
    )
    write_atomically(out, lambda temporary: temporary.write_text(page, encoding="utf-8"))
    return out


def default_page(configs: Sequence[Path]) -> Path:
    """The page's place where none is named."""
    if len(configs) > 1:
        return Path("report.html")
    return inspect_run(read_keys(configs[0]))[1].path / "report.html"


def report_of_run(data: RunData, charts: set[str]) -> RunReport:
    """Collect a run's part of the page.

    Args:
        charts: names of the charts that are on the page.
    """
    return RunReport(
        data=data,
        folder=data.run.path.name,
        verdict=verdict_of(data.whole) if data.whole else None,
        lines=lines_of_run(data),
        model=trained_model(data),
        tiles=tiles_of_run(data),
        costs=costs_of_run(data),
        warned=grouped(data.findings, charts),
        samples=samples_of_run(data.run, data.config, data.trained),
        settings=shown_settings(data.raw, data.config),
        provenance=provenance_of_run(data.run, range(data.trained)),
    )


def lines_of_run(data: RunData) -> list[Line]:
    """Say what each iteration came to, and how far the next one is."""
    lines = [
        Line(t, verdict_of(evidence) if evidence else None, "trained; nothing was measured")
        for t, evidence in enumerate(data.evidences)
    ]
    if data.trained < data.config.iterations:
        _, progress = data.run.iteration(data.trained).training_log()
        if progress:
            state = "in training: {} of {} steps at its last checkpoint".format(*progress)
        elif len(data.figures) > data.trained:
            state = "sampled, not trained yet"
        else:
            state = "not sampled yet"
        lines.append(Line(data.trained, None, state))
    return lines


def trained_model(data: RunData) -> Trained | None:
    """Describe the last trained policy; None if there is none."""
    if not data.trained:
        return None
    model = data.run.iteration(data.trained - 1).model
    folder = model.relative_to(data.run.path).as_posix()
    if not model.exists():
        return Trained(folder, None)
    of, name = (
        ("peft", "AutoPeftModelForCausalLM")
        if data.raw.get("adapter")
        else ("transformers", "AutoModelForCausalLM")
    )
    imports = (
        "from peft import AutoPeftModelForCausalLM\nfrom transformers import AutoTokenizer\n"
        if of == "peft"
        else "from transformers import AutoModelForCausalLM, AutoTokenizer\n"
    )
    return Trained(
        folder,
        f'{imports}\nfolder = "{folder}"  # in the run directory, {data.run.path.name}\n'
        f'model = {name}.from_pretrained(folder, dtype="auto")\n'
        "tokenizer = AutoTokenizer.from_pretrained(folder)\n",
    )


def grouped(findings: Sequence[Finding], charts: set[str]) -> list[Warned]:
    """Group warnings by sign; of several remedies, the last iteration's counts."""
    by_sign: dict[str, list[Finding]] = {}
    for finding in sorted(findings, key=lambda f: f.iteration):
        by_sign.setdefault(finding.sign, []).append(finding)
    return [
        Warned(
            sign,
            found,
            chart if (chart := CHARTS_OF_SIGNS.get(sign)) in charts else None,
            next(
                (yaml.safe_dump(f.remedy, sort_keys=False) for f in reversed(found) if f.remedy),
                None,
            ),
        )
        for sign, found in by_sign.items()
    ]


def shown_settings(raw: Mapping[str, Any], config: TSpinConfig) -> dict[str, str]:
    """Collect the settings that decide a run's result, as YAML without this machine's paths and
    without keys."""
    keys = (
        "base_model",
        "adapter",
        "datasets",
        "test_datasets",
        "val_set_size",
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
    changed = {k: v for k, v in block.items() if k != "generation" and v != defaults.get(k)}
    generation = {
        k: v for k, v in block["generation"].items() if v != defaults["generation"].get(k)
    }
    generation.pop("server_command", None)  # it may hold keys
    if "python" in generation:
        generation["python"] = public_name(generation["python"])
    if "servers" in generation:
        generation["servers"] = [without_credentials(url) for url in generation["servers"]]
    always = {name: block[name] for name in ("method", "alpha", "beta", "loss", "iterations")}
    sampling = {n: block["generation"][n] for n in ("backend", "temperature", "max_new_tokens")}
    shown = {"t_spin": always | changed | {"generation": sampling | generation}}
    shown |= {key: plain(raw[key]) for key in keys if raw.get(key) is not None}
    for key in ("base_model", "datasets", "test_datasets"):
        if key in shown:
            shown[key] = _public(shown[key])
    return {
        key: yaml.safe_dump(json.loads(json.dumps(value)), allow_unicode=True).removesuffix("...\n")
        for key, value in shown.items()
    }


def _public(value: Any) -> Any:
    """Shorten the names of files in `base_model`, or in `datasets:` or a part of it."""
    if isinstance(value, str):
        return public_name(value)
    if isinstance(value, list):
        return [_public(item) for item in value]
    if not isinstance(value, Mapping):
        return value
    return {k: _public(v) if k in ("path", "data_files") else v for k, v in value.items()}


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


def _names(configs: Sequence[Path]) -> list[str]:
    """Give runs short distinct names: the YAMLs' stems, or their paths if stems are equal."""
    if len({config.resolve() for config in configs}) < len(configs):
        raise TSpinError("one YAML is named twice; name each run once")
    stems = [config.stem for config in configs]
    if len(set(stems)) == len(stems):
        return stems
    root = os.path.commonpath([config.resolve().parent for config in configs])
    return [os.path.relpath(config.resolve().with_suffix(""), root) for config in configs]
