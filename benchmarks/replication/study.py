"""Run a study of the replication, as far as its results lack runs; one line per iteration.

    python benchmarks/replication/study.py STUDY WORK [--seeds 0 1 2]

Studies: search (first: the others read its best settings), methods, data, grid, selection, shift.
After an interruption, the same command continues. Processes may share a study by seeds or methods.
Results go to `results/STUDY.jsonl`.
"""

import argparse
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("AXOLOTL_DO_NOT_TRACK", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import torch
from evaluation import annotated
from runs import ROWS, self_play_run, sft_run, shifting_run

RESULTS = Path(__file__).parent / "results"
METHODS = ("t_spin", "spin", "sft", "no_history", "t_spin_ref")
ITERATIONS = 5
SEARCH_SEED, SEARCH_ITERATIONS = 100, 2
"""Do not use seed 0: `base.py` trains on the problems that it draws."""

SELF_PLAY_TRIALS = tuple(
    (alpha, rate)
    for alphas, rates in [((1.0, 0.1), (1e-5, 3e-5, 1e-4, 3e-4)), ((3.0,), (1e-5, 3e-5))]
    for alpha in alphas
    for rate in rates
)
"""α and learning rate; every self-play method tries the same pairs."""

SFT_TRIALS = (3e-5, 5e-5, 7e-5, 8e-5, 1e-4, 1.2e-4, 1.5e-4, 2e-4, 3e-4, 1e-3)
"""SFT has no α; it gets as many trials as the others."""

GRID = (0.1, 0.3, 0.5, 1.0)

Arm = dict[str, Any]
"""Keys that identify a run within its study and seed; `method` is "sft" or a t_spin.method."""


def search_arms() -> Iterator[Arm]:
    for method in METHODS:
        if method == "sft":
            yield from ({"method": method, "learning_rate": rate} for rate in SFT_TRIALS)
            continue
        for alpha, rate in SELF_PLAY_TRIALS:
            yield {"method": method, "alpha": alpha, "learning_rate": rate}


def methods_arms() -> Iterator[Arm]:
    for method in METHODS:
        yield best(method)


def data_arms() -> Iterator[Arm]:
    for share in (0.25, 0.1, 0.01):
        for method in ("t_spin", "sft"):
            yield best(method) | {"rows": max(1, round(share * ROWS))}


def grid_arms() -> Iterator[Arm]:
    for alpha in GRID:
        for beta in GRID:
            yield best("t_spin") | {"alpha": alpha, "beta": beta}


def selection_arms() -> Iterator[Arm]:
    for select in ("fraction", "advantage"):
        yield best("t_spin") | {"select": select, "fraction": 0.5}


def shift_arms() -> Iterator[Arm]:
    for then in ("new anchor", "old anchor", "mixed"):
        yield {"then": then, **best("t_spin")}


STUDIES = {
    "search": search_arms,
    "methods": methods_arms,
    "data": data_arms,
    "grid": grid_arms,
    "selection": selection_arms,
    "shift": shift_arms,
}


def results(study: str) -> list[dict[str, Any]]:
    path = RESULTS / f"{study}.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def best(method: str) -> Arm:
    """Find the settings with the highest validation accuracy at the end of the search."""
    found = [
        r
        for r in results("search")
        if r["arm"]["method"] == method and r["iteration"] == SEARCH_ITERATIONS - 1
    ]
    trials = len(SFT_TRIALS if method == "sft" else SELF_PLAY_TRIALS)
    if len(found) != trials:
        raise SystemExit(f"{len(found)} of {trials} trials of {method}: search first")
    return max(found, key=lambda r: (r["accuracy"], r["held_out_logp"]))["arm"]


def run_arm(study: str, arm: Arm, seed: int, work: Path) -> Iterator[dict[str, Any]]:
    name = "-".join(f"{key}={value}" for key, value in arm.items())
    folder = work / study / f"seed={seed}" / name
    settings = dict(arm)
    method, rate = settings.pop("method"), settings.pop("learning_rate")
    common: dict[str, Any] = {
        "seed": seed,
        "iterations": SEARCH_ITERATIONS if study == "search" else ITERATIONS,
        "learning_rate": rate,
        "validation": study == "search",
    }
    # A smaller data set is the beginning of a larger one.
    rows = annotated(ROWS, seed)[: settings.pop("rows", ROWS)]
    if method == "sft":
        yield from sft_run(folder, work / "base", rows, **common)
        return
    if "then" in settings:
        # The runs of a seed share the iterations before the shift.
        folder = work / study / f"seed={seed}" / f"then={settings['then']}"
        common["iterations"] = ITERATIONS + 1
        common.pop("validation")
        yield from shifting_run(folder, work / "base", rows, **settings, **common)
        return
    selection = {key: settings.pop(key) for key in ("select", "fraction") if key in settings}
    yield from self_play_run(
        folder, work / "base", rows, generation=selection, method=method, **settings, **common
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("study", choices=list(STUDIES))
    parser.add_argument("work", type=Path)
    parser.add_argument("--seeds", type=int, nargs="*", default=[1, 2, 3, 4, 5])
    parser.add_argument("--methods", nargs="*", default=METHODS, choices=METHODS)
    args = parser.parse_args()
    torch.set_num_threads(1)
    RESULTS.mkdir(exist_ok=True)
    seeds = [SEARCH_SEED] if args.study == "search" else args.seeds
    arms = [arm for arm in STUDIES[args.study]() if arm["method"] in args.methods]
    for seed in seeds:
        for arm in arms:
            done = {
                r["iteration"] for r in results(args.study) if (r["arm"], r["seed"]) == (arm, seed)
            }
            last = (SEARCH_ITERATIONS if args.study == "search" else ITERATIONS) - 1
            last += args.study == "shift"
            if last in done:
                continue
            for record in run_arm(args.study, arm, seed, args.work.resolve()):
                if record["iteration"] not in done:
                    line = json.dumps({"arm": arm, "seed": seed, **record}) + "\n"
                    with open(RESULTS / f"{args.study}.jsonl", "a") as file:
                        file.write(line)
                print(arm, seed, record["iteration"], record["accuracy"], flush=True)


if __name__ == "__main__":
    main()
