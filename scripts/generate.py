"""The generation step as a script: `python scripts/generate.py run.yml`.

It does the same as `axolotl t-spin generate run.yml`.
"""

import sys

from axolotl_tspin.commands import t_spin

if __name__ == "__main__":
    t_spin(["generate", *sys.argv[1:]])
