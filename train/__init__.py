"""The programs: training, evaluation, prediction and what they share. `python -m train --help`."""
