"""`python -m pagedcore` is the command `pagedcore`."""

import sys

from pagedcore.cli import main

sys.exit(main())
