"""SAM-2 through the original `sam2` package: a configuration and a .pt checkpoint."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from tk.runtime.errors import EnvironmentLacks, TkError
from tk.runtime.preprocess import Image
from tk.train.data.masks.masker import Answer, config_for, lacks, one_line
from tk.train.run.checkpoint import why_unreadable


class PackageMasker:
    """`SAM2ImagePredictor` on batches of crops.

    Args:
        config: name in the package (`configs/sam2.1/sam2.1_hiera_t.yaml`) or a yaml file on disk.
        checkpoint: file with `{"model": state dict}`.
        device: where the model runs.

    Raises:
        TkError: unknown configuration, missing or broken checkpoint, or two that do not fit.
        EnvironmentLacks: there is no package `sam2`.
    """

    def __init__(self, config: str, checkpoint: Path, device: torch.device) -> None:
        package = _package()
        from sam2.build_sam import build_sam2
        from sam2.sam2_image_predictor import SAM2ImagePredictor

        folder, name = _find_config(package, config)
        state = _read_checkpoint(checkpoint)
        with _hydra_in(folder):
            _check_config(name, config)
            # Without a checkpoint: the package's own loading tells no error from another, and its
            # releases before 1.1 unpickled whatever the file held. Its default device is "cuda".
            model = build_sam2(name, ckpt_path=None, device=str(device))
        try:
            model.load_state_dict(state)
        except RuntimeError as error:
            right = config_for(checkpoint.name)
            raise TkError(
                f"the weights in {checkpoint} do not fit the configuration {config}",
                found=one_line(error),
                fix=f"--sam2_cfg {right}" if right else "choose the pair that belongs together",
            ) from None
        # The areas of holes and sprinkles stay 0: filling them needs a CUDA extension of the
        # package, and without it every image costs a warning.
        self._predictor = SAM2ImagePredictor(model)

    def masks(self, images: Sequence[Image]) -> list[Answer]:
        """As `Masker.masks`."""
        boxes = [np.array([0, 0, image.shape[1], image.shape[0]], np.float32) for image in images]
        with torch.inference_mode():
            self._predictor.set_image_batch(list(images))  # a list; it asserts on other sequences
            offered, expected, _ = self._predictor.predict_batch(
                box_batch=boxes, multimask_output=True
            )
        self._predictor.reset_predictor()
        best = [int(np.argmax(ious)) for ious in expected]
        # The package turns its bool masks into float32.
        return [
            (three[one] > 0.5, float(ious[one]))
            for three, ious, one in zip(offered, expected, best, strict=True)
        ]


def _package() -> Path:
    """Folder of the package."""
    try:
        import sam2
        import sam2.build_sam
    except ModuleNotFoundError as error:
        raise lacks(str(error.name), "sam2") from None
    except RuntimeError as error:  # the package refuses to run beside its own clone
        raise EnvironmentLacks("the package sam2 does not load", found=one_line(error)) from None
    return Path(sam2.__path__[0])


def _find_config(package: Path, config: str) -> tuple[Path, str]:
    """Folder to search and name in it, for a name of the package or a file."""
    if (package / config).is_file() and not Path(config).is_absolute():
        return package, config
    file = Path(config).expanduser().resolve()
    if file.is_file():
        return file.parent, file.name
    names = sorted(path.relative_to(package).as_posix() for path in package.glob("configs/*/*"))
    raise TkError(
        "unknown configuration of SAM-2",
        expected="a yaml file, or one of\n    "
        + "\n    ".join(name for name in names if name.endswith("yaml") and "training" not in name),
        found=config,
    )


@contextmanager
def _hydra_in(folder: Path) -> Iterator[None]:
    """Let Hydra search in one folder, and leave it as it was found.

    The package sets up Hydra, a global of the process, when it is imported, and only if nobody has
    done so before: in a program that uses Hydra itself its configurations are not found, and a file
    on disk never is.
    """
    from hydra import initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra

    before = GlobalHydra.instance().hydra
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(str(folder), version_base="1.2"):
            yield
    finally:
        GlobalHydra.instance().hydra = before


def _check_config(name: str, config: str) -> None:
    """Refuse what is no model of SAM-2: a configuration may name any function to be called."""
    from hydra import compose
    from omegaconf import OmegaConf

    try:
        composed = OmegaConf.to_container(compose(config_name=name), resolve=True)
    except Exception as error:  # Hydra, OmegaConf and yaml have a dozen types for a broken file
        raise TkError(f"{config} cannot be read", found=one_line(error)) from None
    model = composed.get("model") if isinstance(composed, dict) else None
    if not isinstance(model, dict) or "_target_" not in model:
        raise TkError(
            f"{config} is not the configuration of a SAM-2 model",
            expected="model: {_target_: sam2.modeling.sam2_base.SAM2Base, …}",
        )
    for target in _targets(model):
        if not _is_part(target):
            raise TkError(
                f"{config} names something that is no part of SAM-2",
                expected="classes of sam2.modeling",
                found=target,
            )


def _targets(value: Any) -> Iterator[str]:
    inner: list[Any] = []
    if isinstance(value, dict):
        if "_target_" in value:
            yield str(value["_target_"])
        inner = list(value.values())
    elif isinstance(value, list):
        inner = value
    for one in inner:
        yield from _targets(one)


def _is_part(target: str) -> bool:
    from hydra.utils import get_class

    if not target.startswith("sam2."):
        return False
    try:
        found = get_class(target)
    except Exception:  # whatever importing a wrong name raises
        return False
    # Not by the name alone: it reaches all that the package imports (sam2.build_sam.os.system).
    return issubclass(found, nn.Module)


def _read_checkpoint(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise TkError(
            f"the checkpoint of SAM-2 {path} does not exist",
            expected="a file such as sam2.1_hiera_large.pt",
            fix="download it (licence: Apache 2.0), or leave out --sam2_cfg to use a Hugging Face "
            "id or folder",
        )
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises six kinds, all of which mean the same here
        raise TkError(
            f"{path} cannot be read as a checkpoint of SAM-2",
            expected='{"model": weights}, whole; nothing in it is executed',
            found=why_unreadable(error),
            fix="download it again: a broken-off download looks like this",
        ) from None
    if not isinstance(state, dict) or not isinstance(state.get("model"), dict):
        raise TkError(f"{path} is not a checkpoint of SAM-2", expected='{"model": weights}')
    weights: dict[str, Any] = state["model"]
    return weights
