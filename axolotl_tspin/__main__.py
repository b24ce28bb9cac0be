"""`python -m axolotl_tspin …`: the commands of `axolotl t-spin`, for programs.

`axolotl` prints its logo to stdout before a plugin's command begins, and its loggers write there
as well. Here they write to stderr, so stdout holds only a command's own output.
"""

import contextlib
import sys

from axolotl_tspin import need_axolotl


def main() -> None:
    try:
        need_axolotl("`python -m axolotl_tspin`")
    except ImportError as error:
        sys.exit(str(error))
    with contextlib.redirect_stdout(sys.stderr):
        import axolotl.cli  # noqa: F401  its loggers keep the stdout that they find on import
    from axolotl_tspin.commands import t_spin

    t_spin(prog_name="python -m axolotl_tspin")


if __name__ == "__main__":
    main()
