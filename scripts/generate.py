"""The generation step as a script: `python scripts/generate.py run.yml`.

The same as `axolotl t-spin generate run.yml`.
"""

from axolotl_tspin.cli import generate

if __name__ == "__main__":
    generate()
