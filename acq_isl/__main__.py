"""``python -m acq_isl`` is ``acq-isl``."""

from acq_isl.cli.app import main

main()
