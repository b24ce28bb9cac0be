"""The report's parts: tiles, samples and their differences, drawings, groups of warnings."""

import re

import numpy as np
import pytest
import yaml

from axolotl_tspin.config import TSpinConfig
from axolotl_tspin.diagnostics import findings
from axolotl_tspin.diagnostics.evaluation import TaskScore
from axolotl_tspin.diagnostics.figures import Sampling
from axolotl_tspin.diagnostics.findings import Finding
from axolotl_tspin.diagnostics.report import grouped, shown_settings
from axolotl_tspin.diagnostics.samples import (
    MOST_CHARACTERS,
    SHORT,
    Piece,
    chosen,
    differences,
    shown,
    words_changed,
)
from axolotl_tspin.diagnostics.svg import (
    MOST_POINTS,
    Point,
    Series,
    axes_of,
    draw,
    number,
    thinned,
)
from axolotl_tspin.diagnostics.tiles import KINDS, duration, score_tiles, tile_of
from axolotl_tspin.verdicts.evidence import Figure


def figure(before, after, low, high) -> Figure:
    return Figure(before=before, after=after, change=after - before, low=low, high=high)


@pytest.mark.parametrize(
    ("name", "before", "after", "low", "high", "word", "judgement"),
    [
        ("logps/annotated_per_token", -2.0, -1.5, 0.2, 0.8, "▲ rose", "better"),
        ("logps/annotated_per_token", -1.5, -2.0, -0.8, -0.2, "▼ fell", "worse"),
        ("logps/annotated_per_token", -2.0, -1.5, -0.2, 1.2, "? not settled", ""),
        ("logps/annotated", -9.0, -12.0, -5.0, -1.0, "▼ fell", "worse"),
        ("accuracy", 0.2, 0.5, 0.1, 0.5, "▲ rose", "better"),
        ("accuracy", 0.5, 0.2, -0.5, -0.1, "▼ fell", "worse"),
        # Fewer of these are better.
        ("cut", 0.5, 0.1, -0.6, -0.2, "▼ fell", "better"),
        ("cut", 0.1, 0.5, 0.2, 0.6, "▲ rose", "worse"),
        ("repetition", 0.1, 0.5, 0.2, 0.6, "▲ rose", "worse"),
        # Lengths are better the closer they are to those of y.
        ("length_ratio", 0.5, 0.9, 0.2, 0.6, "▲ rose", "better"),
        ("length_ratio", 0.9, 0.5, -0.6, -0.2, "▼ fell", "worse"),
        ("length_ratio", 1.9, 1.1, -1.0, -0.6, "▼ fell", "better"),
        ("length_ratio", 1.1, 1.9, 0.6, 1.0, "▲ rose", "worse"),
        ("length_ratio", 0.9, 1.2, 0.2, 0.4, "▲ rose", ""),
        ("cut", 0.0, 0.0, 0.0, 0.0, "= unchanged", ""),
    ],
)
def test_a_tile_says_what_its_interval_settles(name, before, after, low, high, word, judgement):
    tile = tile_of(figure(before, after, low, high), KINDS[name])
    assert (tile.word, tile.judgement) == (word, judgement)


def test_a_tile_shows_its_figures():
    tile = tile_of(figure(-2.0, -1.5, 0.25, 0.75), KINDS["logps/annotated_per_token"])
    assert (tile.before, tile.after) == ("−2.000", "−1.500")
    assert tile.change == "+0.500 (95%: +0.250 to +0.750)"


def test_a_tile_without_an_interval_settles_nothing():
    one_prompt = Figure(before=0.1, after=0.9, change=0.8)
    tile = tile_of(one_prompt, KINDS["accuracy"])
    assert (tile.word, tile.judgement) == ("? not settled", "")
    assert tile.change == "+80.0%, no interval"
    tile = tile_of(Figure(before=0.1), KINDS["accuracy"])
    assert (tile.before, tile.after, tile.word) == ("10.0%", None, "")
    assert tile.change == "only the initial model's is known"
    assert tile_of(Figure(after=0.1), KINDS["accuracy"]).change == "only the last model's is known"


def score(value, stderr, metric="acc,none") -> TaskScore:
    return TaskScore("task", metric, value, stderr, 0, 100)


@pytest.mark.parametrize(
    ("before", "after", "word", "judgement"),
    [
        (score(0.4, 0.01), score(0.5, 0.01), "▲ rose", "better"),
        (score(0.5, 0.01), score(0.4, 0.01), "▼ fell", "worse"),
        (score(0.4, 0.05), score(0.5, 0.05), "? not settled", ""),
        (score(0.4, None), score(0.5, 0.01), "? not settled", ""),
        (
            score(9.0, 0.1, "word_perplexity,none"),
            score(7.0, 0.1, "word_perplexity,none"),
            "▼ fell",
            "better",
        ),
        (score(0.4, 0.01, "acc,none"), score(0.5, 0.01, "acc_norm,none"), "", ""),
    ],
)
def test_benchmark_scores_are_judged_by_their_errors(before, after, word, judgement):
    [tile] = score_tiles({0: [before], 2: [after]}, 2)
    assert (tile.word, tile.judgement) == (word, judgement)


def test_the_scores_of_an_iteration_that_is_not_the_last_are_not_its():
    [tile] = score_tiles({0: [score(0.4, 0.01)], 1: [score(0.5, 0.01)]}, 2)
    assert (tile.before, tile.after) == ("0.400", None)
    [tile] = score_tiles({0: [score(0.4, 0.01)]}, 0)
    assert tile.after is None, "without a trained model the initial one is not compared with itself"


def test_durations():
    assert [duration(s) for s in (0.04, 9.94, 59, 61, 7100, 7260)] == [
        "0.0 s",
        "9.9 s",
        "59 s",
        "1 min",
        "118 min",
        "2 h 01 min",
    ]


def test_prompts_are_chosen_at_random_and_by_what_became_of_them():
    falls = np.array([0.1, -0.2, 0.9, 0.5, np.nan, 0.0])
    changes = np.array([0, 0, 0, 3, 7, 0])
    found = dict(chosen(6, falls, changes))
    assert dict(chosen(6, falls, changes)) == found, "the same ones each time"
    assert sum("chosen at random" in why for why in found.values()) == 2
    of = {i: [w.split(": ")[0] for w in why.split("; ")] for i, why in found.items()}
    assert [i for i in of if "largest fall of log π(y) per token" in of[i]] and all(
        ("largest fall of log π(y) per token" in of.get(i, [])) == (i in (2, 3)) for i in range(6)
    )
    assert all(("most words changed" in of.get(i, [])) == (i in (3, 4)) for i in range(6))
    assert "0.900 nats" in found[2] and "most words changed: 7" in found[4]


def test_what_did_not_fall_or_change_is_not_called_so():
    found = chosen(4, np.array([-0.1, -0.2, 0.0, np.nan]), np.zeros(4))
    assert [why for _, why in found] == ["chosen at random"] * 2
    assert [why for _, why in chosen(4, None, None)] == ["chosen at random"] * 2
    assert len(chosen(1, None, None)) == 1


def test_differences_are_those_of_words():
    left, right = differences("the old cat  sat\ndown", "the new cat  sat\nup there")
    assert left == [
        Piece("", "the "),
        Piece("del", "old "),
        Piece("", "cat  sat\n"),
        Piece("del", "down"),
    ]
    assert right[1::2] == [Piece("ins", "new "), Piece("ins", "up there")]
    assert differences("a b ", "a b") == ([Piece("", "a b ")], [Piece("", "a b")])
    assert differences("", "") == ([], [])
    for text, pieces in (("  x y", differences("  x y", "z")[0]), ("z", differences("", "z")[1])):
        assert "".join(p.text for p in pieces) == text
    assert words_changed("a a b", "a c") == 3
    assert words_changed("a b", "b a") == 0


def test_long_texts_are_folded_and_what_is_left_out_is_counted():
    text = "x" * (MOST_CHARACTERS + 5)
    pieces = [Piece("", text[:100]), Piece("del", text[100:MOST_CHARACTERS])]
    found = shown(pieces, text)
    assert sum(len(p.text) for p in found.head) == SHORT
    assert [p.mark for p in found.head] == ["", "del"] and [p.mark for p in found.folded] == ["del"]
    assert sum(len(p.text) for p in found.folded) == MOST_CHARACTERS - SHORT
    assert found.left_out == 5
    short = shown([Piece("", "x" * SHORT)], "x" * SHORT)
    assert (short.folded, short.left_out) == ([], 0)


def test_thinned_curves_keep_their_spikes_and_their_ends():
    points = [Point(x, 0.0) for x in range(50_000)]
    points[31_234] = Point(31_234, 9.0)
    points[777] = Point(777, -4.0)
    found = thinned(points)
    assert len(found) <= MOST_POINTS
    assert {points[0], points[-1], points[31_234], points[777]} <= set(found)
    assert [p.x for p in found] == sorted(p.x for p in found)
    assert thinned(points[:MOST_POINTS]) == points[:MOST_POINTS]


def places(svg: str) -> list[list[float]]:
    found = re.findall(r'<polyline points="([^"]*)"', svg)
    return [[float(p.split(",")[1]) for p in line.split()] for line in found]


def test_a_drawing_has_its_values_and_puts_them_in_order():
    series = [
        Series("a<b", "y", [Point(1, -2.5), Point(2, 1.0), Point(3, 0.0)]),
        Series("held", "s", [Point(1, -3.0), Point(3, 1.5)], held_out=True),
    ]
    svg = draw("t", series, axes_of(series), x="steps", marks=[2])
    assert 'data-name="a&lt;b" data-x="1 2 3" data-y="−2.5 1 0"' in svg
    (low, high, middle), (lowest, highest) = places(svg)
    assert highest < high < middle < low < lowest, "higher values lie above"
    assert svg.count("<circle") == 2, "only what is held out has markers"
    assert svg.count('class="mark"') == 1


def test_intervals_and_logarithms_are_drawn():
    series = [Series("a", "y", [Point(0, 1.0, 0.5, 2.0)])]
    svg = draw("t", series, axes_of(series), x="", marks=[])
    assert svg.count('class="interval"') == 1 and svg.count("<circle") == 1
    series = [Series("a", "y", [Point(0, 1.0), Point(1, 10.0), Point(2, 100.0)])]
    for is_log, even in ((True, True), (False, False)):
        [[a, b, c]] = places(draw("t", series, axes_of(series, is_log=is_log), x="", marks=[]))
        assert ((a - b) == pytest.approx(b - c, abs=0.2)) is even


@pytest.mark.parametrize("values", [[0.0], [5.0, 5.0], [1e-9, 2e-9], [-1e9, 1e9], [0.3, 0.31]])
def test_any_range_has_a_few_ticks(values):
    series = [Series("a", "y", [Point(x, v) for x, v in enumerate(values)])]
    for with_zero in (False, True):
        svg = draw("t", series, axes_of(series, with_zero=with_zero), x="", marks=[])
        assert 2 <= svg.count('class="grid"') <= 7


def test_numbers_are_short():
    assert [number(v) for v in (-0.0, 3.0, -1.23456, 1e-7, 123456.0)] == [
        "0",
        "3",
        "−1.235",
        "1e−07",
        "123456",
    ]


def test_warnings_are_grouped_by_sign_and_linked_to_the_charts_that_are_there():
    found = [
        Finding(1, "saturated", "late", remedy={"t_spin": {"alpha": 0.1}}),
        Finding(0, "saturated", "early", remedy={"t_spin": {"alpha": 0.5}}),
        Finding(0, "foreign anchor", "it"),
    ]
    foreign, saturated = sorted(grouped(found, {"saturation"}), key=lambda w: w.sign)
    assert [f.text for f in saturated.findings] == ["early", "late"]
    assert saturated.chart == "saturation"
    assert yaml.safe_load(saturated.patch) == {"t_spin": {"alpha": 0.1}}
    assert (foreign.chart, foreign.patch) == (None, None)
    assert grouped(found, set())[0].chart is None
    assert grouped([], {"saturation"}) == []


def test_a_remedy_has_values_that_differ_from_the_runs():
    sampling = Sampling(iteration=1, sampled=10, tokens=400, cut=5)
    first = Sampling(iteration=0, sampled=10, tokens=100, cut=0)
    assert findings.cut_at_the_limit(sampling, 40).remedy == {
        "t_spin": {"generation": {"max_new_tokens": 80}}
    }
    assert findings.length_explosion(sampling, first, 1e-4).remedy == {"learning_rate": 5e-5}
    assert findings.length_explosion(sampling, first).remedy is None, "it is not known"
    logs = {"saturation/both": 1.0, "rewards/margins": 9.0, "rewards/historical_margins": 9.0}
    for alpha, lower in ((1.0, 0.1), (0.1, 0.05)):
        finding = findings.saturated(0, logs, alpha)
        assert finding.remedy == {"t_spin": {"alpha": lower}}
        assert f"(now {alpha:g}) to {lower:g}" in finding.text


def test_settings_have_no_paths_of_this_machine_and_no_keys():
    config = TSpinConfig.model_validate(
        {
            "generation": {
                "backend": "server",
                "servers": ["http://user:s3cret@node1:8000/v1"],
                "server_command": "serve --api-key s3cret",
                "python": "/home/me/venv/bin/python",
            }
        }
    )
    raw = {
        "base_model": "/home/me/models/base",
        "datasets": [{"path": "/home/me/data/train.jsonl", "data_files": ["/home/me/x.jsonl"]}],
        "test_datasets": [{"path": "org/data"}],
        "learning_rate": 1e-4,
    }
    shown_text = "".join(shown_settings(raw, config).values())
    assert "/home/me" not in shown_text and "s3cret" not in shown_text
    for kept in ("train.jsonl", "x.jsonl", "org/data", "base", "http://node1:8000/v1"):
        assert kept in shown_text
