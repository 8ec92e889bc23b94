"""Inputs that are kept: for each target a file with one a line, as JSON strings whose characters are its bytes."""

from __future__ import annotations

import json
from pathlib import Path

_FOLDER = Path(__file__).parent / "corpus"


def read(target: str) -> list[bytes]:
    path = _FOLDER / f"{target}.jsonl"
    return [json.loads(line).encode("latin-1") for line in path.read_text().splitlines()] if path.exists() else []


def add(target: str, raw: bytes) -> None:
    with (_FOLDER / f"{target}.jsonl").open("a") as file:
        file.write(json.dumps(raw.decode("latin-1")) + "\n")
