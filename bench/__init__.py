# SPDX-License-Identifier: Apache-2.0
"""Comparisons with a named baseline in the same run: `python -m bench.NAME --help`."""

import os

# PyTorch reads this when it is imported, so it stands here. Threads that spin while they wait for
# one another take the cores from those that they wait for, where other processes are at work too.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
