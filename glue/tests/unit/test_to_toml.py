"""The Ansible filters that write and read our configuration files, checked against Python's own reader of TOML."""

import importlib.util
import tomllib
from pathlib import Path
from types import ModuleType

import pytest
from hypothesis import given
from hypothesis import strategies as st

PLUGINS = Path(__file__).parents[3] / "plugins" / "filter"


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, PLUGINS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


to_toml = load("to_toml").to_toml
from_toml = load("from_toml").from_toml

# Surrogates are no text that can be written to a file.
text = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
scalars = st.one_of(
    text,
    st.booleans(),
    st.integers(min_value=-(2**63), max_value=2**63 - 1),
    st.floats(allow_nan=False),
)
values = st.recursive(
    scalars,
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(text, inner, max_size=3)),
    max_leaves=12,
)


@given(st.dictionaries(text, values, max_size=5))
def test_what_is_written_reads_back_the_same(document: dict[str, object]) -> None:
    assert tomllib.loads(to_toml(document)) == document


@given(st.dictionaries(text, values, max_size=5))
def test_what_is_read_is_written_to_the_letter(document: dict[str, object]) -> None:
    # Or a configuration of which a move has changed one part would look new to the next deployment.
    written = to_toml(document)
    assert to_toml(from_toml(written)) == written


def test_a_file_looks_as_a_person_would_write_it() -> None:
    document = {
        "service": "bridge",
        "kafka": {"properties": {"bootstrap.servers": "10.0.0.1:9092", "retries": 3}},
        "services": [{"name": "slowjobs-bridge"}, {"name": "slowjobs-worker@fixity", "pool": "fixity"}],
        "host": "control1",
        "lanes": {},
    }
    assert to_toml(document) == (
        'service = "bridge"\nhost = "control1"\n'
        '\n[kafka]\n\n[kafka.properties]\n"bootstrap.servers" = "10.0.0.1:9092"\nretries = 3\n'
        '\n[[services]]\nname = "slowjobs-bridge"\n'
        '\n[[services]]\nname = "slowjobs-worker@fixity"\npool = "fixity"\n'
        "\n[lanes]\n"
    )


@pytest.mark.parametrize(
    ("document", "place"),
    [
        ({"pool": {"slots": None}}, "pool.slots"),
        ({"services": [{"name": None}]}, r"services\[0\].name"),
        ({"key": [1, None]}, r"key\[1\]"),
        ({"lanes": {1: "a"}}, "lanes"),
    ],
)
def test_what_toml_cannot_hold_is_named_with_its_place(document: dict[str, object], place: str) -> None:
    with pytest.raises(TypeError, match=place):
        to_toml(document)


def test_only_a_mapping_is_a_document() -> None:
    with pytest.raises(TypeError, match="expected a mapping"):
        to_toml(["a"])
