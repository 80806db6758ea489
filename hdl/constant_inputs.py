# SPDX-License-Identifier: Apache-2.0
"""Constants that a module is given from outside, put into it before it is mapped.

The register file is the same module for all configurations and gets hash, shape and limits of its
own as inputs. Mapped with them as inputs, it has multiplexers that flat synthesis does not have.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

_PIN = re.compile(r"\.(\w+)\((\d+'h[0-9a-f]+)\)")


def with_constants(texts: Mapping[str, str]) -> dict[str, str]:
    """Return the modules, each with the constants in place of the inputs that are given them.

    The ports stay, and nothing reads them. A module that stands in several places stays as it is,
    and so does an input of which a part is read.

    Args:
        texts: Verilog by module, as trilat writes it, without comments.
    """
    whole = "\n".join(texts.values())
    result = {}
    for name, text in texts.items():
        places = re.findall(rf"^\s*{name} \w+ \((.*?)\);$", whole, flags=re.M | re.S)
        given = dict(_PIN.findall(places[0])) if len(places) == 1 else {}
        head, end, body = text.partition(");\n")
        for port, value in given.items():
            if not re.search(rf"\b{port}\s*\[", body):
                # Not the name of another module's port.
                body = re.sub(rf"(?<![.\w]){port}\b", value, body)
        result[name] = head + end + body
    return result
