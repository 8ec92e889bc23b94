"""What the tests with faults share: servers that only they end and freeze, and a slowjobs for many rounds."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from chaos import theatre as theatres

if TYPE_CHECKING:
    from collections.abc import Iterator

    from chaos.theatre import Theatre


@pytest.fixture(scope="session")
def theatre() -> Iterator[Theatre]:
    with theatres.opened() as opened:
        yield opened
