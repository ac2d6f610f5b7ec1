"""A process whose page-table memory is known."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.live.grower_process import Grower


@pytest.fixture
def grower() -> Iterator[Grower]:
    one = Grower()
    yield one
    one.end()
