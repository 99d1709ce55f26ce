"""`python edit.py ...` is `unwrap edit ...`."""

import sys

from editors.cli.main import main

sys.exit(main(["edit", *sys.argv[1:]]))
