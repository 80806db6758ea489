# SPDX-License-Identifier: Apache-2.0
"""What every room shares: the error for bad input, and files that are never half-written."""
