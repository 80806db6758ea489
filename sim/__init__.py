# SPDX-License-Identifier: Apache-2.0

from pathlib import Path

import trilat  # noqa: F401 (before PyTorch)

CACHE = Path(".cache") / "sim"  # where commands keep finished simulators
