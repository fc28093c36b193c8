"""One small SAM-2, exported once for all tests here."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image
from tests.export.sam2 import small
from transformers import Sam2Model

from tk.export.sources.sam2 import open_source
from tk.export.sources.source import Source
from tk.export.write import write_bundle


@pytest.fixture(scope="session")
def network() -> Sam2Model:
    """The library's model, the reference of everything."""
    return small.small_model()


@pytest.fixture(scope="session")
def bundle(network: Sam2Model, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundle made from the saved folder of `network`, after its parity gate."""
    folder = tmp_path_factory.mktemp("sam2")
    network.save_pretrained(folder / "model")
    (folder / "images").mkdir()
    for index, picture in enumerate(small.pictures(2, 90, 140)):
        Image.fromarray(picture).save(folder / "images" / f"{index}.png")
    model = open_source(Source(folder / "model", "sam2"), 3)
    write_bundle(model, folder / "bundle", folder / "images")
    return folder / "bundle"
