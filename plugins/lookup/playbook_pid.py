"""Which process runs the playbook, and thereby whether it still does."""

from __future__ import annotations

import os
from typing import Any

from ansible.plugins.lookup import LookupBase

DOCUMENTATION = """
name: playbook_pid
author: the slowjobs project
short_description: The process id of ansible-playbook
description:
  - Each task runs in a process and a session of its own. It outlives an C(ansible-playbook) that was killed or lost its
    terminal, and would go on with its loop for as long as that lasts.
  - Of use in a task's arguments and conditions alone, which are evaluated in that process.
"""

EXAMPLES = """
break_when: lookup('playbook_pid') != it_was
"""

RETURN = """
_raw:
  description: The process id of ansible-playbook; another one when it has ended.
  type: list
  elements: str
"""


class LookupModule(LookupBase):
    """What Ansible loads."""

    def run(self, terms: list[str], variables: dict[str, Any] | None = None, **kwargs: Any) -> list[str]:
        """Return the parent of the process that runs the task."""
        return [str(os.getppid())]
