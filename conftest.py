"""Settings for all tests: one thread a process, so that several can run side by side."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
