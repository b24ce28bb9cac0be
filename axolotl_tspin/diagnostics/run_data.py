"""What the report shows of a run, read from its directory; no policy is loaded."""

from pathlib import Path
from typing import Any, NamedTuple

from axolotl_tspin.config import TSpinConfig
from axolotl_tspin.diagnostics.evaluation import TaskScore, harness_scores
from axolotl_tspin.diagnostics.figures import IterationFigures, iteration_figures, run_figures
from axolotl_tspin.diagnostics.findings import Finding, findings_of_run, findings_of_sampling
from axolotl_tspin.errors import TSpinError
from axolotl_tspin.resolve.yaml_file import inspect_run, read_keys
from axolotl_tspin.run.directory import RunDirectory
from axolotl_tspin.verdicts.evidence import Evidence, evidence_since_start, read_evidence
from axolotl_tspin.verdicts.verdict import trained_iterations


class RunData(NamedTuple):
    """A run, as far as it has come.

    Attributes:
        raw: the YAML as the user wrote it.
        trained: number of trained iterations.
        figures: of the trained iterations, and of the next one if its triplets are there.
        logs: the training logs of iterations 0, 1, …, the last of them perhaps of a checkpoint.
        evidences: what each trained iteration changed; None where nothing was measured.
        whole: what the run changed so far, from the initial policy to the last trained one.
        scores: scores of lm-evaluation-harness, by the number of iterations that the policy was
            trained for; 0 is the initial policy.
    """

    name: str
    run: RunDirectory
    config: TSpinConfig
    raw: dict[str, Any]
    trained: int
    figures: list[IterationFigures]
    logs: list[list[dict[str, Any]]]
    evidences: list[Evidence | None]
    whole: Evidence | None
    scores: dict[int, list[TaskScore]]
    findings: list[Finding]


def read_run(config_path: Path, name: str) -> RunData:
    """Read a run.

    Raises:
        TSpinError: the YAML is not one of ours, or its run has not begun.
    """
    raw = read_keys(config_path)
    config, run = inspect_run(raw)
    if not run.exists():
        raise TSpinError(
            f"{config_path}: {run.path} holds no run yet, so that there is nothing to report; "
            f"`axolotl t-spin run {config_path}` begins it"
        )
    trained = trained_iterations(run, config)
    figures, findings = run_figures(run, config), findings_of_run(run, config)
    if trained < config.iterations and run.iteration(trained).triplets("train").exists():
        figures.append(iteration_figures(run, trained, config, scores=None))
        findings += findings_of_sampling(run, trained, config)
    folders = [run.path, *(run.iteration(t).path for t in range(trained))]
    scores = {number: harness_scores(folder) for number, folder in enumerate(folders)}
    begun = min(trained + 1, config.iterations)
    evidences = [read_evidence(run, t, config) for t in range(trained)]
    return RunData(
        name=name,
        run=run,
        config=config,
        raw=raw,
        trained=trained,
        figures=figures,
        logs=[run.iteration(t).training_log()[0] for t in range(begun)],
        evidences=evidences,
        whole=evidence_since_start(run, trained, config),
        scores={number: found for number, found in scores.items() if found},
        findings=findings,
    )
