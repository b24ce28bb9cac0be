"""The YAMLs for 70B models run as they are shipped, like those in test_recipes.py."""

import pytest
from support.recipes import OF_70B, generate_train_generate


@pytest.mark.parametrize("recipe", OF_70B, ids=lambda recipe: recipe.id)
def test_a_recipe_runs(recipe, tmp_path, tokenizer):
    generate_train_generate(recipe, tmp_path, tokenizer)
