"""`python -m tk.cli` is `tk`."""

from tk.cli import run

run()
