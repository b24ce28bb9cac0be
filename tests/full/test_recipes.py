"""Every YAML of examples/yaml runs as it is shipped: generate, train, generate.

Those for 70B models are in test_recipes_70b.py, and the README's is in test_readme.py. What cannot
hold on a CPU is in `support.recipes.CANNOT_HOLD`.
"""

import re

import pytest
import yaml
from support.data import ROOT
from support.recipes import OF_70B, SMALLER, generate_train_generate


def test_every_yaml_is_run():
    shipped = {path.stem for path in (ROOT / "examples" / "yaml").glob("*.yml")}
    assert {recipe.name for recipe in (*SMALLER, *OF_70B)} == shipped
    whole = []
    for document in (ROOT / "README.md", *(ROOT / "docs").glob("*.md")):
        for text in re.findall(r"^```yaml\n(.*?)^```", document.read_text(), re.M | re.S):
            whole += [document.name] * ("base_model" in yaml.safe_load(text))
    assert whole == ["README.md"], "the others are parts, to add to a YAML"


@pytest.mark.parametrize("recipe", SMALLER, ids=lambda recipe: recipe.id)
def test_a_recipe_runs(recipe, tmp_path, tokenizer):
    generate_train_generate(recipe, tmp_path, tokenizer)
