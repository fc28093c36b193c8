"""Builders that several test files share."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests import tiny_bundles

from tk.runtime.bundle import Bundle


@pytest.fixture(scope="session")
def tiny_world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `bundles/` and `gallery/` that find, cut out and name one bright blob."""
    world = tmp_path_factory.mktemp("tiny")
    bundles = tiny_bundles.write_tiny_bundles(world / "bundles")
    identity = Bundle.open(bundles / "embedder").sha256
    tiny_bundles.tiny_gallery(identity).save(world / "gallery")
    return world
