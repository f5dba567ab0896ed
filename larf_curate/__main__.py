"""``python -m larf_curate``: the same as the command ``larf-curate``."""

from larf_curate.cli import main

main(prog_name="larf-curate")
