"""The report's page: every figure against its file, and each warning and colour where it says the
opposite."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import yaml
from peft import LoraConfig, get_peft_model
from support.commands import ENVIRONMENT, call, refused
from support.data import ROOT
from support.fine_tuned import fine_tune, sums
from support.made_runs import Texts, make_run, score_triplets
from support.pages import Element, measured, parsed
from support.policies import tiny_llama
from support.runs import own_environment, train_here, write_yaml

from axolotl_tspin.diagnostics import report_watch
from axolotl_tspin.diagnostics.figures import keep_figures, read_figures
from axolotl_tspin.diagnostics.report import trained_model, write_report
from axolotl_tspin.diagnostics.run_data import read_run
from axolotl_tspin.diagnostics.svg import number
from axolotl_tspin.generation.step import generate
from axolotl_tspin.resolve.yaml_file import inspect_run, read_keys
from axolotl_tspin.run.directory import RunDirectory
from axolotl_tspin.run.logps import read_logps
from axolotl_tspin.run.tables import read_metadata, read_table

ITERATIONS = 2


@pytest.fixture(scope="module")
def run(tmp_path_factory, tokenizer):
    """Two iterations with held-out prompts, and the final policy's responses to these."""
    folder = tmp_path_factory.mktemp("reported")
    path = write_yaml(
        folder,
        fine_tune(folder / "beginner", tokenizer, steps=50),
        datasets=[sums(folder)],
        num_epochs=4,
        learning_rate=1e-4,
        eval_strategy="steps",
        eval_steps=4,
        val_set_size=0.25,
        t_spin={
            "iterations": ITERATIONS,
            "alpha": 0.2,
            "answer": "#### ([0-9]+)",
            "generation": {"max_new_tokens": 24, "batch_size": 48},
        },
    )
    with pytest.MonkeyPatch.context() as patch, own_environment():
        patch.chdir(folder)
        for _ in range(ITERATIONS):
            generate(path)
            train_here(path)
        generate(path)
    return path, RunDirectory(folder / "out")


@pytest.fixture(scope="module")
def page(run) -> Element:
    return parsed(write_report([run[0]]))


def minus(text: str) -> str:
    return text.replace("-", "−")


def tile(page: Element, label: str) -> Element:
    [found] = [t for t in page.find(kind="tile") if t.find(kind="label")[0].text == label]
    return found


def rows_of(directory, number, split) -> list[dict]:
    return read_table(directory.iteration(number).triplets(split))[0].to_pylist()


def logps_of(directory, number, when) -> np.ndarray:
    table, _ = read_logps(directory.iteration(number).measured(when, "test"))
    return table["annotated_logps"].to_numpy()


def test_tiles_have_the_figures_of_the_files(run, page):
    _, directory = run
    tokens = np.array([len(row["annotated_ids"]) for row in rows_of(directory, 0, "test")])
    before = logps_of(directory, 0, "before")
    after = logps_of(directory, ITERATIONS - 1, "after")
    sampled = [rows_of(directory, t, "test") for t in (0, ITERATIONS)]
    cut = [np.mean([r["synthetic_finish_reason"] == "length" for r in s]) for s in sampled]
    ratio = [np.mean([len(r["synthetic_ids"]) for r in s]) / tokens.mean() for s in sampled]
    right = [np.mean([is_right(r) for r in s]) for s in sampled]
    for label, values, shown in (
        ("log π(y) per token", ((before / tokens).mean(), (after / tokens).mean()), "{:.3f}"),
        ("log π(y), sum", (before.mean(), after.mean()), "{:.1f}"),
        ("tokens of y′ relative to y", ratio, "{:.2f}"),
        ("y′ cut at the limit", cut, "{:.1%}"),
        ("accuracy", right, "{:.1%}"),
    ):
        [value] = tile(page, label).find(kind="value")
        assert value.text == minus(" → ".join(map(shown.format, values))), label
    assert "On 12 held-out prompts" in page.text


def is_right(row: dict) -> bool:
    found = re.findall("#### ([0-9]+)", row["synthetic"])
    return bool(found) and f"#### {found[-1]}" in row["annotated"]


def test_costs_are_those_of_the_files(run, page):
    _, directory = run
    found = [
        read_metadata(directory.iteration(t).triplets(split))
        for t in range(ITERATIONS + 1)
        for split in ("train", "test")
        if directory.iteration(t).triplets(split).exists()
    ]
    assert len(found) == 2 * ITERATIONS + 1
    text = tile(page, "sampling, so far").text
    assert f"{sum(m['sampled'] for m in found)} responses" in text
    assert f"{sum(m['tokens'] for m in found)} tokens" in text.replace(",", "")
    logs = [directory.iteration(t).training_record()["log_history"] for t in range(ITERATIONS)]
    trained = sum(max(e.get("tokens/total", 0) for e in log) for log in logs)
    assert f"{trained:,.0f} tokens" in tile(page, "training, so far").text


@pytest.mark.parametrize(
    ("chart", "key", "name"),
    [
        ("logps-per-token", "logps/annotated_per_token", "y"),
        ("logps-per-token", "eval_logps/synthetic_per_token", "y′, held out"),
        ("logps", "logps/proto_synthetic", "y0"),
        ("loss", "loss", "both"),
        ("loss", "eval_loss", "both, held out"),
        ("margins", "logps/margins", "gap"),
        ("order", "logps/accuracies", "share"),
        ("saturation", "saturation/historical", "historical"),
        ("gradients", "grad_norm", "whole loss"),
    ],
)
def test_curves_have_the_values_of_the_logs(run, page, chart, key, name):
    _, directory = run
    steps, values, offset = [], [], 0
    for t in range(ITERATIONS):
        log = directory.iteration(t).training_record()["log_history"]
        steps += [offset + e["step"] for e in log if key in e]
        values += [e[key] for e in log if key in e]
        offset += max(e["step"] for e in log)
    [series] = [
        g for g in page.by_id(chart).find("g", "series") if g.attributes.get("data-name") == name
    ]
    assert series.attributes["data-x"].split() == [number(s) for s in steps]
    assert series.attributes["data-y"].split() == [number(v) for v in values]
    assert series.has("held") is key.startswith("eval_")
    [legend] = [li for li in page.by_id(chart).find("li") if li.text.startswith(f"{name}:")]
    assert legend.text == f"{name}: {number(values[0])} → {number(values[-1])}"


def series_of(page: Element, chart: str) -> dict[str, list[str]]:
    found = [group.attributes for group in page.by_id(chart).find("g", "series")]
    return {a["data-name"]: a["data-y"].split() for a in found if "data-y" in a}


def test_curves_by_iteration_have_the_figures_of_the_files(run, page):
    _, directory = run
    figures = [read_figures(directory, t) for t in range(ITERATIONS)]
    assert series_of(page, "gap")["gap"] == [number(f.policy.gap[0]) for f in figures]
    assert series_of(page, "cut")["y′"] == [number(f.sampling.cut_share) for f in figures]
    for chart, kind in (("after", "logps"), ("after-per-token", "logps_per_token")):
        for response, name in (("annotated", "y"), ("synthetic", "y′"), ("proto_synthetic", "y0")):
            values = [getattr(f.policy, kind)[response] for f in figures]
            assert series_of(page, chart)[name] == [number(v) for v in values]
    lengths = series_of(page, "lengths")
    assert lengths["y′"] == [number(f.triplets.tokens["synthetic"]) for f in figures]
    test = [rows_of(directory, t, "test") for t in range(ITERATIONS + 1)]
    means = [np.mean([row["synthetic_tokens"] for row in rows]) for rows in test]
    assert lengths["y′, held out"] == [number(mean) for mean in means]
    tokens = np.array([len(row["annotated_ids"]) for row in test[0]])
    policies = [logps_of(directory, 0, "before")]
    policies += [logps_of(directory, t, "after") for t in range(ITERATIONS)]
    per_token = [number((logps / tokens).mean()) for logps in policies]
    assert series_of(page, "policies")["y, held out"] == per_token
    repetition = [number(f.triplets.repetition["synthetic"]) for f in figures]
    assert series_of(page, "repetition")["y′"] == repetition


def test_the_table_has_the_figures_of_the_files(run, page):
    _, directory = run
    [table] = page.find("table", "iterations")
    columns = list(
        zip(*([cell.text for cell in row.inside] for row in table.find("tr")), strict=True)
    )
    for t, column in enumerate(columns[1:]):
        figures = read_figures(directory, t)
        logps = figures.policy.logps
        assert column == (
            str(t),
            str(figures.sampling.sampled),
            f"{figures.triplets.tokens['annotated']:.0f}",
            f"{figures.triplets.tokens['synthetic']:.0f}",
            f"{figures.sampling.cut_share:.0%}",
            f"{figures.triplets.same_as_annotated:.0%}",
            *(minus(f"{logps[name]:,.1f}") for name in ("annotated", "synthetic")),
            minus(f"{logps['proto_synthetic']:,.1f}"),
            minus(f"{figures.policy.gap[0]:,.1f}"),
            f"{figures.policy.saturated['both']:.0%}",
        )
    assert len(columns) == 1 + ITERATIONS


def test_samples_are_those_of_the_files(run, page):
    _, directory = run
    first, last = (rows_of(directory, t, "test") for t in (0, ITERATIONS))
    falls = logps_of(directory, 0, "before") - logps_of(directory, ITERATIONS - 1, "after")
    falls /= [len(row["annotated_ids"]) for row in first]
    samples = page.find("article")
    assert 2 <= len(samples) <= 6
    worst = set()
    for sample in samples:
        title = sample.find("h3")[0].text
        row = int(re.match(r"Row (\d+):", title).group(1))
        prompt, *texts = sample.find(kind="text")
        assert prompt.text == " ".join(first[row]["prompt"].split()), "it is escaped"
        expected = (first[row]["annotated"], first[row]["synthetic"], last[row]["synthetic"])
        for text, whole in zip(texts, expected, strict=True):
            assert text.text == (" ".join(whole.split()) or "(empty)")
        assert [h.text for h in sample.find("h3")[-2:]] == [
            "y′ of the initial model",
            f"y′ after {ITERATIONS} iterations",
        ]
        if "largest fall" in title:
            worst.add(row)
            assert f"{falls[row]:.3f} nats" in title
        is_changed = expected[1].split() != expected[2].split()
        assert bool(sample.find("del") or sample.find("ins")) is is_changed
    assert worst == {int(i) for i in np.argsort(-falls)[:2] if falls[i] > 0}


def test_the_verdicts_their_warnings_and_their_opposites(run, page, tmp_path):
    """The first policy and the last one trade places in a copy: what was worse is better."""
    _, directory = run
    copy = RunDirectory(tmp_path / "out")
    shutil.copytree(directory.path, copy.path)
    (copy.path / "report.html").unlink()
    cfg = yaml.safe_load(run[0].read_text()) | {"output_dir": str(copy.path)}
    path = tmp_path / "turned.yml"
    path.write_text(yaml.safe_dump(cfg))
    for t in range(ITERATIONS):
        copy.iteration(t).evidence.unlink()
    ends = copy.iteration(0).measured("before", "test"), copy.iteration(1).measured("after", "test")
    between = tmp_path / "between"
    for a, b in ((ends[0], between), (ends[1], ends[0]), (between, ends[1])):
        shutil.move(a, b)
    turned = parsed(write_report([path]))
    words = {}
    for name, shown in (("run", page), ("turned", turned)):
        found = tile(shown, "log π(y) per token")
        text = found.find(kind="change")[0].text.split(": ")[1]
        change = float(text.split()[0].replace("−", "-"))
        is_settled = "not settled" not in found.text
        assert found.has("better") is (is_settled and change > 0)
        assert found.has("worse") is (is_settled and change < 0)
        assert ("▲ rose, better" in found.text) is found.has("better")
        assert ("▼ fell, worse" in found.text) is found.has("worse")
        [verdict] = shown.find(kind="verdict")
        words[name] = verdict.find(kind="word")[0].text
        assert verdict.has("better") is (words[name] == "better")
        assert verdict.has("worse") is (words[name] in ("worse", "collapsed"))
        iterations = [li.find(kind="word")[0].text for li in shown.find("ol")[0].find("li")]
        signs = {w.find("b")[0].text for w in shown.find(kind="warning")}
        assert ("worse" in signs) is ("worse" in iterations)
        assert ("collapse" in signs) is ("collapsed" in iterations)
    assert set(words.values()) == {"better", "worse"}


def test_the_page_needs_nothing_else(run):
    path, directory = run
    text = write_report([path]).read_text()
    links = re.findall(r"""(?:src|href|url)\s*[=(]\s*["']?([^"')\s>]+)""", text)
    assert links and all(re.match(r"#|https://arxiv\.org/", link) for link in links)
    ids = set(re.findall(r' id="([^"]+)"', text))
    assert {link[1:] for link in links if link.startswith("#")} <= ids
    assert "@import" not in text and "<link" not in text
    assert str(directory.path.parent) not in text, "no paths of this machine"
    assert directory.iteration(1).training_record()["policy"] in text
    assert "refresh" not in text


def test_the_snippet_loads_the_model(run, page, monkeypatch):
    _, directory = run
    monkeypatch.chdir(directory.path)
    [snippet] = re.findall(
        r'<pre class="copy">(from transformers.*?)</pre>',
        (directory.path / "report.html").read_text(),
        re.DOTALL,
    )
    loaded = {}
    exec(snippet.replace("&#34;", '"'), loaded)
    assert loaded["model"].name_or_path == "iteration_1/model"
    assert len(loaded["tokenizer"]) == loaded["model"].config.vocab_size


def test_the_snippet_loads_an_adapter(tmp_path, policy_dir, tokenizer, monkeypatch):
    path, directory = make_run(tmp_path, ROWS, trained=1)
    path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | {"adapter": "lora"}))
    model = tiny_llama(len(tokenizer))
    model.name_or_path = model.config._name_or_path = str(policy_dir)
    adapted = get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj"]))
    adapted.peft_config["default"].base_model_name_or_path = str(policy_dir)
    adapted.save_pretrained(directory.iteration(0).model)
    tokenizer.save_pretrained(directory.iteration(0).model)
    monkeypatch.chdir(directory.path)
    loaded = {}
    exec(trained_model(read_run(path, "run")).snippet, loaded)
    assert type(loaded["model"]).__name__.startswith("PeftModel")
    shutil.rmtree(directory.iteration(0).model)
    assert trained_model(read_run(path, "run")).snippet is None
    assert "That folder is gone." in parsed(write_report([path])).text


ROWS = [Texts(f"the answer is {i}", ["so it is", "it is", "is"]) for i in range(8)]


def test_a_run_that_is_only_sampled_shows_what_there_is(tmp_path):
    path, directory = make_run(tmp_path, ROWS, trained=0, iterations=2, cut=0.5)
    page = parsed(write_report([path]))
    assert page.find(kind="verdict")[0].text == "No iteration is trained yet."
    assert "iteration 0: sampled, not trained yet" in page.text
    assert {w.find("b")[0].text for w in page.find(kind="warning")} == {"responses cut"}
    assert page.find("article") and "y′ after" not in page.text
    assert "not trained yet" in page.find("table")[0].text
    assert series_of(page, "cut") == {"y′": ["0.5"]}
    assert "Load it" not in page.text
    shutil.rmtree(directory.iteration(0).path)
    page = parsed(write_report([path]))
    assert "iteration 0: not sampled yet" in page.text and "Nothing is sampled yet" in page.text
    shutil.rmtree(directory.path)
    assert f"axolotl t-spin run {path}` begins it" in refused("report", path)


def test_an_iteration_in_training_shows_its_checkpoint(tmp_path):
    path, directory = make_run(tmp_path, ROWS, trained=0)
    state = {"global_step": 3, "max_steps": 9, "log_history": [{"step": 3, "loss": 0.25}]}
    checkpoint = directory.iteration(0).model / "checkpoint-3"
    checkpoint.mkdir(parents=True)
    (checkpoint / "trainer_state.json").write_text(json.dumps(state))
    page = parsed(write_report([path]))
    assert "iteration 0: in training: 3 of 9 steps at its last checkpoint" in page.text
    assert series_of(page, "loss") == {"both": ["0.25"]}


def test_runs_that_measured_nothing_have_no_verdict(tmp_path):
    path, _ = make_run(tmp_path, ROWS, trained=1)
    page = parsed(write_report([path]))
    assert "No verdict on the run" in page.find(kind="verdict")[0].text
    assert "iteration 0: trained; nothing was measured" in page.text
    header, *rows = page.find("table", "iterations")[0].find("tr")
    assert header.text.endswith("0 (not scored)")
    assert [row.inside[1].text for row in rows] == ["8", "4", "3", "0%", "0%", *["–"] * 5]
    assert not page.find(kind="better") and not page.find(kind="worse")
    assert "None." in page.text and not page.find(kind="warning")


@pytest.mark.parametrize("method", ["spin", "t_spin"])
def test_orders_are_compared_only_where_they_can_differ(tmp_path, method):
    path, directory = make_run(tmp_path, ROWS, trained=1, method=method)
    logps = np.tile([-9.0, -2.0, -3.0], (len(ROWS), 1))
    score_triplets(directory, 0, logps)
    config, _ = inspect_run(read_keys(path))
    keep_figures(directory, 0, config)
    page = parsed(write_report([path]))
    assert bool(page.by_id("orders")) is (method == "spin")
    [warning] = page.find(kind="warning")
    assert warning.find("b")[0].text == "annotated below synthetic"
    assert [a.attributes["href"] for a in warning.find("a")] == ["#gap"]
    assert len(warning.find("pre")) == (method == "spin")
    if method == "spin":
        table = next(t for t in page.find("table") if "r(y)" in t.text)
        [[a, b], [c, d]] = read_figures(directory, 0).policy.table
        cells = [cell.text for cell in table.find("td")]
        assert cells[1:3] == [str(a), f"{b} (opposite)"]
        assert cells[4:] == [f"{c} (opposite)", str(d)]
        assert "method: t_spin" in warning.find("pre")[0].text


def test_benchmarks_are_tiles_and_curves(tmp_path):
    path, directory = make_run(tmp_path, ROWS, trained=1)
    values = {"acc,none": (0.25, 0.5), "acc_stderr,none": (0.01, 0.02)}
    for i, folder in enumerate((directory.path, directory.iteration(0).path)):
        results = {"arc": {key: pair[i] for key, pair in values.items()}}
        (folder / "lm_eval_results").mkdir()
        file = folder / "lm_eval_results" / "results_2026.json"
        file.write_text(json.dumps({"results": results}))
    page = parsed(write_report([path]))
    found = tile(page, "arc (acc)")
    assert found.has("better") and "0.250 → 0.500" in found.text
    error = 1.96 * np.hypot(0.01, 0.02)
    assert f"+0.250 (95%: +{0.25 - error:.3f} to +{0.25 + error:.3f})" in found.text
    assert series_of(page, "benchmark-arc") == {"acc": ["0.25", "0.5"]}
    assert [cell.text for cell in page.find("table", "benchmarks")[0].find("td")[:5]] == [
        "initial",
        "arc",
        "acc",
        "0.250",
        "0.010",
    ]


def test_several_runs_stand_side_by_side(tmp_path):
    log = [{"step": 1, "loss": 0.5}]
    one, first = make_run(tmp_path, ROWS, trained=1, log=log, name="one.yml")
    log = [{"step": 1, "loss": 0.75}]
    other, _ = make_run(tmp_path, ROWS, trained=1, log=log, name="other.yml")
    assert call("report", one, other).strip() == "report.html"
    page = parsed(tmp_path / "report.html")
    loss = page.by_id("loss")
    assert [h.text for h in loss.find("h3")] == ["one", "other"]
    values = [g.attributes["data-y"] for g in loss.find("g") if "data-y" in g.attributes]
    assert values == ["0.5", "0.75"]
    assert len(page.find(kind="verdict")) == 2
    assert "named twice" in refused("report", one, one)
    assert call("report", one).strip() == str(first.path / "report.html")
    assert call("report", one, "--out", tmp_path / "x" / "p.html").strip().endswith("p.html")
    assert (tmp_path / "x" / "p.html").exists()


def test_a_large_run_has_a_small_page(tmp_path):
    rng = np.random.default_rng(0)
    words = [f"word{i}" for i in range(300)]
    texts = [" ".join(rng.choice(words, 1500)) for _ in range(20)]
    train = [Texts("a b", ["c d", "e f"])] * 50_000
    test = [Texts(texts[i % 20], [texts[(i + t) % 20] for t in range(3)]) for i in range(100)]
    keys = ["loss", "grad_norm", "logps/margins", "eval_loss"]
    keys += [f"logps/{name}_per_token" for name in ("annotated", "synthetic", "proto_synthetic")]
    values = rng.random((25_000, len(keys))).tolist()
    log = [{"step": i + 1, **dict(zip(keys, v, strict=True))} for i, v in enumerate(values)]
    log[12_345]["loss"] = 77.0
    logps = [-1.0, -0.9, -0.8]
    path, directory = make_run(tmp_path, train, test, trained=2, logps=logps, log=log)
    page = write_report([path])
    assert 50_000 < page.stat().st_size < 1_000_000
    assert read_metadata(directory.iteration(1).triplets("train"))["rows"] == 50_000
    series = series_of(parsed(page), "loss")["both"]
    assert len(series) <= 160 and "77" in series, "spikes stay"


WIDE = "return [innerWidth, document.documentElement.scrollWidth];"
SEEN = """
const seen = id => { const b = document.getElementById(id).getBoundingClientRect();
  return b.width > 0 && b.height > 0 && b.left >= 0 && b.right <= innerWidth; };
return [...["figures", "warnings", "samples", "curves", "provenance", "loss"].map(seen),
  [...document.querySelectorAll(".tile, .verdict, .sample, svg.plot, .texts > div")].every(e => {
    const b = e.getBoundingClientRect(); return b.left >= 0 && b.right <= innerWidth; }),
  Math.min(...[...document.querySelectorAll("svg.plot text")].map(
    e => e.getBoundingClientRect().height)) >= 10];
"""
HOVER = """
const plot = document.querySelector("#loss svg.plot"), b = plot.getBoundingClientRect();
plot.dispatchEvent(new PointerEvent("pointermove", {clientX: b.right - 1, clientY: b.top + 5}));
return [plot.nextElementSibling.textContent];
"""


@pytest.mark.parametrize("width", [360, 390, 1280])
def test_the_page_fits_its_window(run, tmp_path, width):
    path, _ = run
    page = write_report([path], tmp_path / "page.html")
    inner, scroll = map(float, measured(page, width, WIDE, tmp_path))
    assert inner == width and scroll <= inner
    assert set(measured(page, width, SEEN, tmp_path)) == {"true"}
    broken = tmp_path / "broken.html"
    too_wide = f"</h1><p style='width:{width + 9}px'>x</p>"
    broken.write_text(page.read_text().replace("</h1>", too_wide))
    inner, scroll = map(float, measured(broken, width, WIDE, tmp_path))
    assert scroll > inner, "what does not fit is seen"


def test_wide_tables_and_long_words_do_not_widen_the_page(tmp_path):
    rows = [Texts("x" * 900, ["y" * 900, "z" * 900]) for _ in range(4)]
    path, directory = make_run(tmp_path, rows, trained=1, method="spin", logps=[-1.0, -2.0])
    score_triplets(directory, 0, np.tile([-9.0, -2.0, -3.0], (4, 1)))
    config, _ = inspect_run(read_keys(path))
    keep_figures(directory, 0, config)
    results = {
        "a_task_with_a_long_name": {"exact_match,strict": 0.5, "exact_match_stderr,strict": 0}
    }
    (directory.path / "lm_eval_results").mkdir()
    file = directory.path / "lm_eval_results" / "results_2026.json"
    file.write_text(json.dumps({"results": results}))
    page = write_report([path])
    assert {"orders", "benchmarks"} <= set(re.findall(r' id="([^"]+)"', page.read_text()))
    inner, scroll = map(float, measured(page, 360, WIDE, tmp_path))
    assert (inner, scroll <= inner) == (360, True)


def test_a_drawing_shows_the_values_at_the_pointer(run, tmp_path):
    path, directory = run
    page = write_report([path], tmp_path / "page.html")
    [shown] = measured(page, 1280, HOVER, tmp_path)
    log = directory.iteration(1).training_record()["log_history"]
    losses = [e["loss"] for e in log if "loss" in e]
    assert f"both {number(losses[-1])} at " in shown


def test_words_can_be_read_in_both_themes(run, page):
    _, directory = run
    style = (directory.path / "report.html").read_text().split("</style>")[0]
    light, dark = (
        dict(re.findall(r"--([a-z-]+): (#[0-9a-f]+);", part))
        for part in style.split("prefers-color-scheme: dark")
    )
    assert light.keys() == dark.keys() and light != dark
    for colours in (light, dark):
        pairs = [(c, p) for c in ("text", "soft", "y", "s", "p") for p in ("page", "box")]
        pairs += [("text", box) for box in ("better-box", "worse-box", "warn-box")]
        assert all(contrast(colours[a], colours[b]) >= 4.5 for a, b in pairs)
    assert contrast("#777", "#999") < 4.5


def contrast(one: str, other: str) -> float:
    """Of WCAG 2."""

    def luminance(colour: str) -> float:
        digits = colour[1:] if len(colour) == 7 else "".join(2 * d for d in colour[1:])
        parts = [int(digits[i : i + 2], 16) / 255 for i in (0, 2, 4)]
        linear = [p / 12.92 if p <= 0.03928 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
        return float(np.dot(linear, (0.2126, 0.7152, 0.0722)))

    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def command(*arguments, **environment) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-m", "axolotl_tspin", "report", *map(str, arguments)],
        env=ENVIRONMENT | {"PYTHONPATH": str(ROOT)} | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def test_the_page_is_opened_in_the_browser(tmp_path):
    path, directory = make_run(tmp_path, ROWS, trained=0)
    browser = tmp_path / "browser"
    browser.write_text(f'#!/bin/sh\necho "$1" >{tmp_path}/opened\n')
    browser.chmod(0o755)
    done = command(path, "--open", BROWSER=f"{browser} %s")
    assert done.wait(60) == 0, done.stdout.read()
    page = directory.path / "report.html"
    assert (tmp_path / "opened").read_text().strip() == page.as_uri()
    (tmp_path / "opened").unlink()
    assert command(path, BROWSER=f"{browser} %s").wait(60) == 0
    assert not (tmp_path / "opened").exists()


def until(is_so, what: str) -> None:
    end = time.monotonic() + 60
    while not is_so():
        assert time.monotonic() < end, what
        time.sleep(0.1)


def test_a_watched_page_follows_the_run_until_it_is_interrupted(tmp_path):
    path, directory = make_run(tmp_path, ROWS, trained=0)
    page = directory.path / "report.html"
    watching = command(path, "--watch")
    try:
        until(page.exists, "the page is written")
        until(lambda: "sampled, not trained yet" in page.read_text(), "it shows the run")
        assert 'http-equiv="refresh"' in page.read_text()
        make_run(tmp_path, ROWS, trained=1)
        until(lambda: "sampled, not trained yet" not in page.read_text(), "it follows the run")
        watching.send_signal(signal.SIGINT)
        assert watching.wait(30) == 0, watching.stdout.read()
        assert "refresh" not in page.read_text()
    finally:
        watching.kill()


def test_a_page_is_written_again_only_after_a_change(tmp_path):
    path, directory = make_run(tmp_path, ROWS, trained=0)
    seen = report_watch.files_of([path])
    write_report([path])
    (directory.path / "t_spin.log").write_text("x")
    assert report_watch.files_of([path]) == seen
    os.utime(directory.iteration(0).triplets("train"), (1, 1))
    assert report_watch.files_of([path]) != seen
