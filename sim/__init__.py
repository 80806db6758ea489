# SPDX-License-Identifier: Apache-2.0

from pathlib import Path

CACHE = Path(".cache") / "sim"  # where commands keep finished simulators
