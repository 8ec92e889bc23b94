"""Read TOML: a configuration file of our services, to change one part of it."""

from __future__ import annotations

import tomllib
from typing import Any

DOCUMENTATION = """
name: from_toml
author: the slowjobs project
short_description: A TOML document as a mapping
description:
  - Members keep their order, so that P(to_toml) writes what it has written once to the letter, but for comments.
positional: _input
options:
  _input:
    description: The document.
    type: str
    required: true
"""

EXAMPLES = """
active: "{{ (lookup('ansible.builtin.file', 'bridge.toml') | from_toml).nsqd.active }}"
"""

RETURN = """
_value:
  description: What it holds.
  type: dict
"""


def from_toml(text: str) -> dict[str, Any]:
    """Return what a TOML document holds. Raises tomllib.TOMLDecodeError."""
    return tomllib.loads(str(text))


class FilterModule:
    """What Ansible loads."""

    def filters(self) -> dict[str, object]:
        """Return the filters by name."""
        return {"from_toml": from_toml}
