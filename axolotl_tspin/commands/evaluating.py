"""`lm-eval` and `reward-check`: external judges of a run."""

import json
from pathlib import Path

import click

from axolotl_tspin.commands.group import AS_JSON, CONFIG, VERBOSE
from axolotl_tspin.commands.quiet import quiet
from axolotl_tspin.errors import TSpinError


@click.command(name="lm-eval")
@CONFIG
@VERBOSE
def lm_eval(config: Path, verbose: bool) -> None:
    """Run CONFIG's `lm_eval_tasks` on the policies of its run that lack them.

    `run` does so after each iteration, unless the YAML has `lm_eval_post_train: false`.
    """
    from axolotl_tspin.commands.loop import evaluate_missing
    from axolotl_tspin.resolve.yaml_file import read_keys

    raw = read_keys(config) | {"lm_eval_post_train": True}
    if not raw.get("lm_eval_tasks"):
        raise TSpinError(
            f"{config} has no `lm_eval_tasks`; name some, such as `lm_eval_tasks: [gsm8k]`"
        )
    with quiet(config, verbose=verbose) as log:
        done = evaluate_missing(raw, log)
    click.echo(f"{done} policies evaluated; see `axolotl t-spin status {config}`.")


@click.command(name="reward-check")
@CONFIG
@click.option("--iteration", type=click.IntRange(min=0), help="Default: the last trained one.")
@click.option("--reward-model", metavar="MODEL", help="A sequence classification model.")
@click.option(
    "--answer",
    metavar="REGEX",
    help="Judge by a checkable answer: the last match (or its first group) must equal y's.",
)
@click.option(
    "--scores",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="*.parquet, *.jsonl or *.csv with `row` and a column for each judged response.",
)
@click.option("--rows", type=click.IntRange(min=3), help="Only the first scored triplets.")
@AS_JSON
@VERBOSE
def reward_check(
    config: Path,
    iteration: int | None,
    reward_model: str | None,
    answer: str | None,
    scores: Path | None,
    rows: int | None,
    as_json: bool,
    verbose: bool,
) -> None:
    """Correlate the training reward of CONFIG's run with an independent judge.

    The judge is one of --reward-model, --answer (`'#### (-?[0-9.,]+)'` for GSM8K) and --scores.
    """
    from rich.console import Console
    from rich.table import Table

    with quiet(config, verbose=verbose, as_json=as_json):
        from axolotl_tspin.diagnostics.judges import judge_of
        from axolotl_tspin.diagnostics.reward_check import check_rewards

        judge = judge_of(reward_model, answer, scores)
        checked = check_rewards(config, judge, iteration=iteration, rows=rows)
    if as_json:
        click.echo(
            json.dumps(
                checked._asdict() | {"correlations": [c._asdict() for c in checked.correlations]},
                indent=2,
            )
        )
        return
    table = Table(
        title=f"Training reward and judge ({checked.judge}): {checked.rows} triplets of iteration "
        f"{checked.iteration}",
        caption="Spearman's ρ and Kendall's τ, with 95% intervals by bootstrap over prompts. all "
        "responses, y′ and y0: a response's reward against the judge's score, over all prompts "
        "together. y − y′, y′ − y0: the two differences within a prompt, which the loss trains",
    )
    for name in ("of", "reward"):
        table.add_column(name, no_wrap=True)
    for name in ("n", "ρ", "95%", "τ", "95%"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in checked.correlations:
        table.add_row(
            row.of,
            row.reward,
            str(row.n),
            f"{row.spearman:.3f}",
            f"{row.spearman_low:.3f} to {row.spearman_high:.3f}",
            f"{row.kendall:.3f}",
            f"{row.kendall_low:.3f} to {row.kendall_high:.3f}",
        )
    Console().print(table)
