# SPDX-License-Identifier: Apache-2.0
"""What every room shares: the error for bad input, whole files, progress, the page of reports."""

import os

# PyTorch reads this when it is imported, so the rooms that compute import trilat before it. Threads
# that spin while they wait for one another take the cores from those that they wait for, where
# other processes, as synthesis beside training, are at work too.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
