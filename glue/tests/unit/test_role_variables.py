"""Every role's variables are told in three places: its defaults, its argument specs and its README. They must agree."""

from pathlib import Path
from typing import Any

import pytest
import yaml

ROLES = sorted(path.parent.parent for path in (Path(__file__).parents[3] / "roles").glob("*/meta/argument_specs.yml"))


def load(path: Path) -> dict[str, Any]:
    document = yaml.safe_load(path.read_text(encoding="utf-8")) if path.exists() else None
    return document or {}


@pytest.mark.parametrize("role", ROLES, ids=lambda role: role.name)
def test_argument_specs_name_each_variable_with_its_default(role: Path) -> None:
    defaults = load(role / "defaults" / "main.yml")
    specs = load(role / "meta" / "argument_specs.yml")["argument_specs"]
    options: dict[str, Any] = {
        name: spec for entry in specs.values() for name, spec in entry.get("options", {}).items()
    }
    assert set(defaults) <= set(options)
    assert {name for name, spec in options.items() if not spec.get("required")} <= set(defaults)
    told = {name: spec["default"] for name, spec in options.items() if "default" in spec}
    assert told == {name: defaults[name] for name in told}


@pytest.mark.parametrize("role", ROLES, ids=lambda role: role.name)
def test_the_readme_names_each_variable(role: Path) -> None:
    readme = (role / "README.md").read_text(encoding="utf-8")
    specs = load(role / "meta" / "argument_specs.yml")["argument_specs"]
    names = {name for entry in specs.values() for name in entry.get("options", {})}
    assert {name for name in names if name not in readme} == set()
