# SPDX-License-Identifier: Apache-2.0
"""What every room shares: the error for bad input, whole files, progress, the page of reports."""
