"""``python -m acq_isl`` is ``acq-isl``."""

from acq_isl.cli import main

main()
