"""Named configurations: one file each, holding `get_config()`; `python -m train --list` reads their docstrings."""
