# SPDX-License-Identifier: Apache-2.0
import trilat  # noqa: F401 (before PyTorch)
