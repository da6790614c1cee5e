"""``python -m daskgmm.cli``."""

import sys

from daskgmm.cli import main

sys.exit(main())
