"""Make the figures and tables of the replication from `results/*.jsonl`.

    python benchmarks/replication/figures.py

It writes docs/replication/*.png and prints the tables of docs/replication.md: means over seeds with
95 % confidence intervals by Student's t. Differences to T-SPIN are paired by seed.
"""

import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from scipy import stats

HERE = Path(__file__).parent
OUT = HERE.parent.parent / "docs" / "replication"
NAMES = {
    "t_spin": "T-SPIN",
    "spin": "SPIN",
    "sft": "SFT",
    "no_history": "w/o H-A",
    "t_spin_ref": "T-SPIN_ref",
}
COLOURS = dict(zip(NAMES, ("C0", "C1", "C2", "C3", "C4"), strict=True))

ROWS = 256
"""Annotated problems of a run (`runs.ROWS`)."""

Record = dict[str, Any]


def results(study: str) -> list[Record]:
    path = HERE / "results" / f"{study}.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def interval(values: list[float]) -> tuple[float, float]:
    """Compute mean and half width of its 95 % confidence interval (0 for a single value)."""
    mean = float(np.mean(values))
    if len(values) < 2:
        return mean, 0.0
    return mean, float(stats.sem(values) * stats.t.ppf(0.975, len(values) - 1))


def shown(values: list[float], scale: float = 100, digits: int = 1) -> str:
    mean, half = interval(values)
    text = f"{scale * mean:.{digits}f}"
    return text if len(values) < 2 else f"{text} ± {scale * half:.{digits}f}"


def by_iteration(records: list[Record], key: str) -> dict[int, list[float]]:
    """Collect a figure's values over seeds, in the order of seeds, by iteration."""
    values: dict[int, list[float]] = defaultdict(list)
    for record in sorted(records, key=lambda r: r["seed"]):
        if key in record:
            values[record["iteration"]].append(record[key])
    return dict(sorted(values.items()))


def curve(axes: Any, values: dict[int, list[float]], **style: Any) -> None:
    means, halves = zip(*(interval(v) for v in values.values()), strict=True)
    axes.errorbar(list(values), means, yerr=halves, marker="o", capsize=3, **style)


def paired(ours: list[Record], theirs: list[Record], iteration: int) -> list[float]:
    """Compute differences of accuracy after an iteration, seed by seed."""
    scores = [
        {r["seed"]: r["accuracy"] for r in records if r["iteration"] == iteration}
        for records in (ours, theirs)
    ]
    return [scores[0][seed] - scores[1][seed] for seed in sorted(scores[0].keys() & scores[1])]


def of_method(records: list[Record], method: str) -> list[Record]:
    return [r for r in records if r["arm"]["method"] == method]


def table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def search() -> None:
    records = results("search")
    if not records:
        return
    last = max(r["iteration"] for r in records)
    rows = []
    for method in NAMES:
        trials = [r for r in of_method(records, method) if r["iteration"] == last]
        trials.sort(key=lambda r: (r["arm"].get("alpha", 0), r["arm"]["learning_rate"]))
        rows += [
            [
                NAMES[method],
                str(r["arm"].get("alpha", "–")),
                f"{r['arm']['learning_rate']:g}",
                f"{100 * r['accuracy']:.1f}",
            ]
            for r in trials
        ]
    print("## search\n" + table(["method", "α", "learning rate", "accuracy"], rows))


def methods() -> None:
    records = results("methods")
    if not records:
        return
    base = results("base")[0]["accuracy"]
    present = [m for m in NAMES if of_method(records, m)]
    final = max(r["iteration"] for r in records)
    print(f"## methods (base {100 * base:.1f})")
    for key, scale, title in (
        ("accuracy", 100, "accuracy"),
        ("held_out_logp", 1, "log π(y|x), held out"),
        ("gap", 1, "gap"),
        ("opposite_order", 100, "opposite order"),
    ):
        rows = []
        for method in present:
            values = by_iteration(of_method(records, method), key)
            digits = 1 if scale == 100 else 2
            rows.append([NAMES[method], *(shown(v, scale, digits) for v in values.values())])
        print(title + "\n" + table(["method", *map(str, range(final + 1))], rows))
    ours = of_method(records, "t_spin")
    rows = [
        [
            NAMES[method],
            *(shown(paired(ours, of_method(records, method), t)) for t in range(final + 1)),
        ]
        for method in present[1:]
    ]
    print("T-SPIN minus\n" + table(["method", *map(str, range(final + 1))], rows))

    figure, axes = plt.subplots(1, 3, figsize=(12, 3.6), layout="constrained")
    for method in present:
        style = {"label": NAMES[method], "color": COLOURS[method]}
        mine = of_method(records, method)
        curve(axes[0], {-1: [base], **by_iteration(mine, "accuracy")}, **style)
        curve(axes[1], by_iteration(mine, "held_out_logp"), **style)
        if method != "sft":
            curve(axes[2], by_iteration(mine, "gap"), **style)
    for ax, title in zip(
        axes,
        (
            "held-out accuracy (−1: base)",
            "log π(y|x), held out",
            "log π(y|x) − log π(y′|x), trained",
        ),
        strict=True,
    ):
        ax.set_title(title)
        ax.set_xlabel("iteration")
    axes[2].axhline(0, color="grey", linewidth=0.5)
    axes[0].legend()
    save(figure, "methods")

    figure, axes = plt.subplots(1, 2, figsize=(10, 3.6), layout="constrained")
    for method in [m for m in ("t_spin", "no_history", "spin", "t_spin_ref") if m in present]:
        norms, advantages = [], []
        for seed in sorted({r["seed"] for r in of_method(records, method)}):
            mine = [r for r in of_method(records, method) if r["seed"] == seed]
            mine.sort(key=lambda r: r["iteration"])
            if len(mine) == final + 1:
                norms.append([n for r in mine for n in r["steps"]["grad_norm"]])
                advantages.append([n for r in mine for n in r["steps"]["advantages/current"]])
        if not norms:
            continue
        steps = np.arange(len(norms[0])) / (len(norms[0]) / (final + 1))
        style = {"label": NAMES[method], "color": COLOURS[method], "linewidth": 1}
        axes[0].semilogy(steps, np.mean(norms, axis=0), **style)
        axes[1].plot(steps, np.mean(advantages, axis=0), **style)
        for figure_name, values in (("gradient norm", norms), ("current advantage", advantages)):
            parts = np.mean(np.reshape(values, (len(values), final + 1, -1)), axis=2)
            each = ", ".join(shown(list(part), 1, 1) for part in parts.T)
            print(f"mean {figure_name} by iteration, {NAMES[method]}: {each}")
    axes[0].set_title("gradient norm of a step, mean over seeds")
    axes[1].set_title("current advantage, mean over seeds (nats)")
    for ax in axes:
        ax.set_xlabel("iteration")
    axes[0].legend()
    save(figure, "gradients")


def data() -> None:
    records = [r | {"rows": r["arm"].get("rows", ROWS)} for r in results("data")]
    records += [
        r | {"rows": ROWS}
        for r in results("methods")
        if r["arm"]["method"] in ("t_spin", "sft") and r["seed"] in {q["seed"] for q in records}
    ]
    if not results("data"):
        return
    final = max(r["iteration"] for r in records)
    sizes = sorted({r["rows"] for r in records})
    figure, ax = plt.subplots(figsize=(5.4, 3.6), layout="constrained")
    rows = []
    for method in ("t_spin", "sft"):
        values = {
            size: [
                r["accuracy"]
                for r in sorted(of_method(records, method), key=lambda r: r["seed"])
                if r["rows"] == size and r["iteration"] == final
            ]
            for size in sizes
        }
        curve(ax, values, label=NAMES[method], color=COLOURS[method])
        rows.append([NAMES[method], *(shown(v) for v in values.values())])
    sized = [[r for r in records if r["rows"] == size] for size in sizes]
    differences = [
        shown(paired(of_method(some, "t_spin"), of_method(some, "sft"), final)) for some in sized
    ]
    rows.append(["T-SPIN minus SFT", *differences])
    ax.axhline(results("base")[0]["accuracy"], color="grey", linewidth=0.5, label="base")
    ax.set_xscale("log")
    ax.set_xlabel("annotated problems")
    ax.set_title(f"held-out accuracy after iteration {final}")
    ax.legend()
    save(figure, "data")
    print("## data\n" + table(["method", *map(str, sizes)], rows))


def grid() -> None:
    records = results("grid")
    if not records:
        return
    final = max(r["iteration"] for r in records)
    cells = defaultdict(list)
    for r in records:
        if r["iteration"] == final:
            cells[r["arm"]["alpha"], r["arm"]["beta"]].append(r["accuracy"])
    alphas, betas = (sorted({cell[i] for cell in cells}) for i in (0, 1))
    means = np.array([[100 * np.mean(cells.get((a, b), [np.nan])) for b in betas] for a in alphas])
    figure, ax = plt.subplots(figsize=(4.6, 3.6), layout="constrained")
    image = ax.imshow(means)
    for i, j in np.ndindex(means.shape):
        light = image.norm(means[i, j]) > 0.6
        colour = "black" if light else "white"
        ax.text(j, i, f"{means[i, j]:.1f}", ha="center", va="center", color=colour)
    ax.set_xticks(range(len(betas)), map(str, betas))
    ax.set_yticks(range(len(alphas)), map(str, alphas))
    ax.set_xlabel("β")
    ax.set_ylabel("α")
    ax.set_title(f"held-out accuracy (%) after iteration {final}")
    figure.colorbar(image)
    save(figure, "grid")
    rows = [
        [f"α = {a}", *(shown(cells[a, b]) if cells.get((a, b)) else "–" for b in betas)]
        for a in alphas
    ]
    print("## grid\n" + table(["", *(f"β = {b}" for b in betas)], rows))


def selection() -> None:
    records = results("selection")
    if not records:
        return
    seeds = {r["seed"] for r in records}
    everything = [r for r in of_method(results("methods"), "t_spin") if r["seed"] in seeds]
    arms = {"all": everything}
    for r in records:
        arms.setdefault(f"{r['arm']['select']} {r['arm']['fraction']}", []).append(r)
    final = max(r["iteration"] for r in records)
    figure, ax = plt.subplots(figsize=(5.4, 3.6), layout="constrained")
    rows = []
    for name, mine in arms.items():
        tokens = np.cumsum([np.mean(v) for v in by_iteration(mine, "sampled_tokens").values()])
        accuracies = by_iteration(mine, "accuracy")
        curve(ax, dict(zip(tokens.tolist(), accuracies.values(), strict=True)), label=name)
        rows.append(
            [
                name,
                f"{tokens[-1]:,.0f}",
                shown(accuracies[final]),
                shown(paired(mine, everything, final)),
            ]
        )
        print(f"selection {name}: tokens after each iteration {[round(t) for t in tokens]}")
    ax.set_xlabel("tokens sampled")
    ax.set_title("held-out accuracy")
    ax.legend()
    save(figure, "selection")
    print("## selection\n" + table(["select", "tokens sampled", "accuracy", "minus all"], rows))


def shift() -> None:
    records = results("shift")
    if not records:
        return
    figure, ax = plt.subplots(figsize=(5.4, 3.6), layout="constrained")
    numbers = sorted({r["iteration"] for r in records})
    rows = []
    arms = {
        then: [r for r in records if r["arm"]["then"] == then]
        for then in dict.fromkeys(r["arm"]["then"] for r in records)
    }
    for then, mine in arms.items():
        values = by_iteration(mine, "accuracy")
        curve(ax, values, label=then)
        rows.append([then, *(shown(values[t]) for t in numbers)])
    for then in list(arms)[1:]:
        differences = [shown(paired(arms[then], arms["new anchor"], t)) for t in numbers]
        rows.append([f"{then} minus new anchor", *differences])
    ax.set_xlabel("iteration")
    ax.set_xticks(numbers)
    ax.set_title("restated answers that are right, held out")
    ax.legend()
    save(figure, "shift")
    print("## shift\n" + table(["after the shift", *map(str, numbers)], rows))


def save(figure: Any, name: str) -> None:
    OUT.mkdir(exist_ok=True)
    figure.savefig(OUT / f"{name}.png", dpi=100)
    plt.close(figure)


if __name__ == "__main__":
    for draw in (search, methods, data, grid, selection, shift):
        draw()
