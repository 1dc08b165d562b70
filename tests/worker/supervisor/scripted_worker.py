"""`python -m worker`, but its trainers play the acts in STAGE_ACTS."""

from __future__ import annotations

import os
import sys

import worker.supervisor.context
from tests.worker.supervisor.stage import scripted
from worker.__main__ import main

worker.supervisor.context.trainer_command = lambda: scripted(*os.environ["STAGE_ACTS"].split("\n"))

if __name__ == "__main__":
    sys.exit(main())
