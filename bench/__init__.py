# SPDX-License-Identifier: Apache-2.0
"""Comparisons with a named baseline in the same run: `python -m bench.NAME --help`."""

import trilat  # noqa: F401 (before PyTorch)
