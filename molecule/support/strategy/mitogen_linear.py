"""Mitogen's strategy, where Ansible finds it by its name."""

from ansible_mitogen import affinity
from ansible_mitogen.plugins.strategy.mitogen_linear import StrategyModule

__all__ = ["StrategyModule"]

# Mitogen keeps the first core for itself; of two, all hosts would share the other one.
affinity.policy = affinity.Policy()
