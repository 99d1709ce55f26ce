"""`python train.py ...` is `unwrap train ...`."""

import sys

from editors.cli.main import main

sys.exit(main(["train", *sys.argv[1:]]))
