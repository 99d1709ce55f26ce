"""`python render.py ...` is `unwrap render ...`."""

import sys

from editors.cli.main import main

sys.exit(main(["render", *sys.argv[1:]]))
