"""The `t_spin` block: its ranges, its errors, and the pages that describe it."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from axolotl.utils.dict import DictDefault
from support.data import ROOT

from axolotl_tspin.config import TSpinConfig
from axolotl_tspin.errors import TSpinError
from axolotl_tspin.resolve.yaml_file import parse_t_spin


def parse(**block):
    return parse_t_spin(DictDefault({"t_spin": block}))


def test_the_defaults_are_the_papers():
    config = parse()
    assert (config.alpha, config.beta, config.loss, config.iterations) == (1.0, 0.1, "logistic", 5)
    sampling = config.generation
    assert (sampling.temperature, sampling.top_p, sampling.max_new_tokens) == (1.0, 1.0, 256)


@pytest.mark.parametrize(
    ("block", "message"),
    [
        ({"alpah": 1}, r"'alpah' is not a key of `t_spin`; did you mean 'alpha'\?"),
        ({"generation": {"temprature": 1}}, r"`t_spin\.generation`; did you mean 'temperature'\?"),
        ({"zzz": 1}, r"'zzz' is not a key of `t_spin` \(keys: allow_foreign, alpha"),
        ({"alpha": 0}, r"t_spin\.alpha: .*greater than 0"),
        ({"beta": -0.1}, r"t_spin\.beta: .*greater than or equal to 0"),
        ({"loss": "hinge"}, r"t_spin\.loss: .*'logistic' or 'exponential'"),
        ({"iterations": 0}, r"t_spin\.iterations: "),
        ({"iterations": 3, "iteration": 3}, r"not one of the run's 3 iterations \(0 to 2\)"),
        ({"generation": {"top_p": 0}}, r"t_spin\.generation\.top_p: "),
        ({"generation": {"backend": "magic"}}, r"t_spin\.generation\.backend: "),
        ({"keep_models": True}, r"t_spin\.keep_models: `true` is neither a number nor text"),
        ({"history_window": True}, r"t_spin\.history_window: `true`"),
        ({"generation": {"batch_size": False}}, r"generation\.batch_size: `false`"),
        ({"alpha": float("inf")}, r"t_spin\.alpha: .*finite"),
        (
            {"generation": {"backend": "server", "servers": ["http://a/v1", "localhost:8000/v1"]}},
            r"generation\.servers: `localhost:8000/v1` is not a base URL; expected .* http://",
        ),
        ({"generation": {"select": "advantage"}}, r"`fraction: 1\.0` takes all prompts"),
    ],
)
def test_a_bad_block_is_refused_by_name(block, message):
    with pytest.raises(TSpinError, match=message):
        parse(**block)


def test_the_page_of_all_keys_is_current():
    command = [sys.executable, str(ROOT / "scripts" / "make_configuration.py"), "--check"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")),
    *sorted((ROOT / "docs").glob("*.md")),
    *sorted((ROOT / "benchmarks").glob("*.md")),
]
FOLDERS = (ROOT, ROOT / "axolotl_tspin", ROOT / "docs", ROOT / "benchmarks")
"""Where a path in a page may begin."""


def heading_anchors(page: Path) -> set[str]:
    """Names that GitHub gives a page's headings."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_links_of_a_page_lead_to_files_and_headings(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        path, _, anchor = target.partition("#")
        if "://" not in path:
            linked = (page.parent / path) if path else page
            assert linked.exists(), target
            assert not anchor or anchor in heading_anchors(linked), target


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_paths_that_a_page_names_exist(page):
    words = re.findall(r"(?<!`)`([^`\n]+)`(?!`)", page.read_text())
    paths = [word for word in words if re.fullmatch(r"[\w./-]+\.(py|sh|md|yml)", word)]
    paths += [word for word in words if re.fullmatch(r"(axolotl_tspin|tests)/[\w./-]+", word)]
    of_a_run = {"run.yml", "train.yml", "iteration_t/model/README.md"}
    for path in set(paths) - of_a_run:
        at_its_place = any((folder / path).exists() for folder in FOLDERS)
        by_name = "/" not in path and any(
            any((ROOT / folder).rglob(path)) for folder in ("tests", "axolotl_tspin")
        )
        assert at_its_place or by_name, path


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_yaml_of_a_page_is_valid(page):
    for block in re.findall(r"^```yaml\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL):
        TSpinConfig.model_validate(yaml.safe_load(block).get("t_spin", {}))


def test_the_badges_of_the_readme_are_those_of_the_package():
    readme = (ROOT / "README.md").read_text()
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    versions = [c.rpartition(" ")[2] for c in project["classifiers"] if ":: Python :: 3." in c]
    assert f"![Python {', '.join(versions)}]" in readme
    assert "axolotl>=0.19,<0.22" in project["dependencies"]
    assert "![Axolotl 0.19 to 0.21]" in readme
    assert project["license"] == "Apache-2.0" and "![License: Apache 2.0]" in readme


def test_importing_the_package_loads_no_torch():
    code = "import sys, axolotl_tspin.config, axolotl_tspin.triplets, axolotl_tspin.commands; "
    code += "sys.exit('torch' in sys.modules or 'axolotl' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_the_mathematics_imports_neither_axolotl_nor_trl():
    code = (
        "import sys, axolotl_tspin.training.collator, axolotl_tspin.training.trainer; "
        "sys.exit('axolotl' in sys.modules or 'trl' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
