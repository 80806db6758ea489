# SPDX-License-Identifier: Apache-2.0
"""The report of `bench.protection`."""


def write_report(*a): ...
