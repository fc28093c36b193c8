from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image
from tests.export.grounding.library import Library
from tests.export.grounding.models import CANVAS, KINDS, picture, small_config, write_model

from tk.export.model import ExportModel
from tk.export.sources.registry import open_source
from tk.export.write import write_bundle

SIZES = ((300, 200), (224, 256), (97, 400))


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models")
    return {kind: write_model(root / kind, kind) for kind in KINDS}


@pytest.fixture(scope="session")
def opened(folders: dict[str, Path]) -> dict[str, ExportModel]:
    return {kind: open_source(folder, 3, size=CANVAS) for kind, folder in folders.items()}


@pytest.fixture(scope="session")
def libraries(folders: dict[str, Path]) -> dict[str, Library]:
    return {kind: Library(folder) for kind, folder in folders.items()}


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    for index, size in enumerate(SIZES):
        Image.fromarray(picture(*size, seed=index)).save(folder / f"{index}.png")
    return folder


@pytest.fixture(scope="session")
def free_bundle(
    opened: dict[str, ExportModel], photos: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """GroundingDINO whose prompt is an option."""
    out = tmp_path_factory.mktemp("free") / "detector"
    write_bundle(opened["grounding-dino"], out, photos)
    return out


@pytest.fixture(scope="session")
def shallow(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """MM-GroundingDINO with fewer layers: less time to export."""
    config = small_config("mm-grounding-dino", encoder_layers=1)
    config.backbone_config.depths = [1, 1, 1, 1]
    return write_model(tmp_path_factory.mktemp("shallow") / "m", "mm-grounding-dino", config)


@pytest.fixture(scope="session")
def free_mm_bundle(shallow: Path, photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """MM-GroundingDINO whose prompt is an option."""
    out = tmp_path_factory.mktemp("free_mm") / "detector"
    write_bundle(open_source(shallow, 2, size=CANVAS), out, photos)
    return out


@pytest.fixture(scope="session")
def baked_bundle(shallow: Path, photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """MM-GroundingDINO with one prompt as constants."""
    out = tmp_path_factory.mktemp("baked") / "detector"
    write_bundle(open_source(shallow, 2, size=CANVAS, prompt="wrench . red pliers"), out, photos)
    return out
