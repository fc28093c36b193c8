"""SAM-2 -> two parts: an image encoder, and a decoder of many boxes of one picture.

Reads a Hugging Face folder (`Sam2Model`, or the image part of a video model) and original `.pt`
checkpoints of the `sam2` package, which is not needed for it.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import Sam2Config, Sam2Model

from tk.export.model import ExportModel, ExportPart, repeat_rows
from tk.export.sam2.convert import convert
from tk.export.sam2.decoder import Sam2Decoder
from tk.export.sam2.encoder import Sam2Encoder
from tk.export.sam2.variants import VARIANTS, config_of, recognise, variant_of
from tk.export.sources.segmenter import spread_boxes
from tk.export.sources.source import Source
from tk.runtime.backends.base import Arrays
from tk.runtime.errors import TkError
from tk.runtime.files import read_json
from tk.runtime.manifest import Part, TensorSpec
from tk.runtime.preprocess import ImageSpec
from tk.train.pretrained.load import load_pretrained
from tk.train.run.checkpoint import why_unreadable

MAX_BOXES = 16
"""Boxes per decoder call; the runtime takes more in chunks. Measured at 1024 pixels with ONNX
Runtime, beside 0.2 GB of process and weights: 0.5 GB for 16 boxes, 1.0 GB for 32, 100 or any
number more in chunks of 16, and 3.7 GB for 100 in one call, which is not faster."""

IMAGES = 4
"""Pictures per encoder call when nobody asks for a number: each needs 1 GB (tiny) to 2 GB (large)
at 1024 pixels."""

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
LICENCE = "not stated with the file; Meta publishes the SAM 2 weights under Apache-2.0"


def open_source(source: Source, max_batch: int) -> ExportModel:
    """Load a SAM-2 model and describe it.

    Raises:
        TkError: the weights do not fit the configuration, or the canvas is not one it can take.
    """
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    facts: dict[str, Any] = {"model_id": source.name or source.path.name}
    if source.path.is_dir() or source.path.suffix == ".safetensors":
        folder = source.path if source.path.is_dir() else source.path.parent
        network = load_pretrained(Sam2Model, source.path)
        mean, std = normalisation(folder)
    else:
        network, variant, left_out = load_original(source.path, source.sam2_cfg)
        facts |= {"sam2_variant": variant, "video_tensors_left_out": left_out}
    return describe(network, source, max_batch, facts, mean=mean, std=std)


def load_original(path: Path, name: str) -> tuple[Sam2Model, str, int]:
    """Convert an original checkpoint.

    Args:
        path: the `.pt` file.
        name: of its configuration, or "" to tell it from the weights.

    Returns:
        The model, the key of its variant, and how many tensors of the video part were left out.

    Raises:
        TkError: not such a file, or of another configuration than `name`.
    """
    state = _read_original(path)
    known = recognise(state)
    if not (name or known):
        raise TkError(
            f"the weights in {path.name} are of no SAM-2 that tk knows",
            expected=", ".join(VARIANTS),
            fix="convert them to a Hugging Face folder with config.json",
        )
    variant = variant_of(name) if name else known
    if known and known != variant:
        raise TkError(
            f"{path.name} is not of the configuration {name}",
            expected=f"weights of SAM-2 {variant}",
            found=f"weights of SAM-2 {known}",
            fix=f"--sam2-cfg configs/sam2.1/sam2.1_hiera_{VARIANTS[known].letter}.yaml",
        )
    network, left_out = build_converted(config_of(variant), state)
    return network, variant, left_out


def build_converted(config: Sam2Config, original: dict[str, Tensor]) -> tuple[Sam2Model, int]:
    """Build `Sam2Model` with original weights; also how many video tensors were left out.

    Raises:
        TkError: the weights do not fit `config`.
    """
    with torch.device("meta"):
        network: Any = Sam2Model(config)
    converted = convert(original, network.state_dict())
    network.load_state_dict(converted.state, strict=True, assign=True)
    return network.eval(), len(converted.left_out)


def _read_original(path: Path) -> dict[str, Tensor]:
    try:
        saved = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises half a dozen types on broken or foreign files
        raise TkError(
            f"{path.name} cannot be read as a checkpoint of sam2",
            found=why_unreadable(error),
        ) from error
    state = saved.get("model", saved) if isinstance(saved, dict) else None
    if not isinstance(state, dict) or not all(isinstance(v, Tensor) for v in state.values()):
        raise TkError(
            f"{path.name} is not a checkpoint of sam2", expected="tensors by name under 'model'"
        )
    return state


def normalisation(folder: Path) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and spread of the channels as the folder's image processor states them."""
    for name in ("preprocessor_config.json", "processor_config.json"):
        value: Any = read_json(folder / name) if (folder / name).is_file() else {}
        value = value.get("image_processor", value)
        if "image_mean" in value and "image_std" in value:
            return tuple(value["image_mean"]), tuple(value["image_std"])
    return IMAGENET_MEAN, IMAGENET_STD


def describe(
    network: Sam2Model,
    source: Source,
    max_batch: int,
    facts: dict[str, Any],
    *,
    mean: tuple[float, ...] = IMAGENET_MEAN,
    std: tuple[float, ...] = IMAGENET_STD,
) -> ExportModel:
    """Describe a loaded model as parts.

    Args:
        network: in evaluation mode, float32.
        source: where it came from, and the canvas if it shall be another than the model's own.
        max_batch: pictures per encoder call, 0 for `IMAGES`.
        facts: for the manifest.
        mean, std: of the channels, on the scale 0..1.

    Raises:
        TkError: the canvas is not one that the model can take.
    """
    hw = _canvas(network, source.size)
    image = ImageSpec(*hw, mode="stretch", interpolation="area")
    encoder = Sam2Encoder(network, hw, mean, std).eval()
    decoder = Sam2Decoder(network, hw).eval()
    canvas = TensorSpec("image", "uint8", ("B", *hw, 3), "RGB canvas")
    features = _features(network, decoder.grid)
    of_one = tuple(TensorSpec(f.name, f.dtype, (1, *f.shape[1:]), f.meaning) for f in features)
    h, w = (4 * side for side in decoder.grid)
    outputs = (
        TensorSpec("logits", "float32", ("N", h, w), "object above 0, over the canvas"),
        TensorSpec("iou", "float32", ("N",), "expected mask quality, 0..1"),
    )
    boxes = TensorSpec("boxes", "float32", ("N", 4), "xyxy, canvas pixels")

    def feed_encoder(canvases: NDArray[np.uint8], batch: int) -> Arrays:
        return {"image": repeat_rows(canvases, batch)}

    @torch.inference_mode()
    def feed_decoder(canvases: NDArray[np.uint8], batch: int) -> Arrays:
        maps = encoder(torch.from_numpy(canvases[:1]))
        own = {spec.name: value.numpy() for spec, value in zip(of_one, maps, strict=True)}
        return {**own, "boxes": spread_boxes(image, batch)}

    return ExportModel(
        task="segmenter",
        parts={
            "encoder": ExportPart(
                encoder, Part((canvas,), features, max_batch or IMAGES), feed_encoder
            ),
            "decoder": ExportPart(
                decoder, Part((*of_one, boxes), outputs, MAX_BOXES), feed_decoder
            ),
        },
        image=image,
        crop=None,
        classes=(),
        settings={"mask_frame": "canvas"},
        source=facts,
        licence=source.licence or LICENCE,
        checkpoint=_weights_file(source.path),
    )


def _features(network: Sam2Model, grid: tuple[int, int]) -> tuple[TensorSpec, ...]:
    config: Any = network.config
    channels = config.mask_decoder_config.hidden_size
    h, w = grid
    return (
        TensorSpec("embed", "float32", ("B", channels, h, w), "features of the picture"),
        TensorSpec("high_0", "float32", ("B", channels // 8, 4 * h, 4 * w), "finest features"),
        TensorSpec("high_1", "float32", ("B", channels // 4, 2 * h, 2 * w), "finer features"),
    )


def _canvas(network: Sam2Model, size: tuple[int, int] | None) -> tuple[int, int]:
    """Canvas height and width; checked, for windows of the position encoding must tile it."""
    config: Any = network.config
    own = config.prompt_encoder_config.image_size
    height, width = size if size is not None else (own, own)
    backbone = config.vision_config.backbone_config
    pools = 2**backbone.num_query_pool_stages
    step = backbone.patch_stride[0] * math.lcm(backbone.window_size_per_stage[0], pools)
    if min(height, width) < step or height % step or width % step:
        near = [max(1, round(side / step)) * step for side in (height, width)]
        raise TkError(
            "SAM-2 cannot take a canvas of this size",
            expected=f"height and width in multiples of {step} pixels",
            found=f"{height}x{width}",
            fix=f"--size {near[0]}x{near[1]}",
        )
    return height, width


def _weights_file(path: Path) -> Path:
    """File whose hash names the weights; the index of weights that lie in several files."""
    if path.is_file():
        return path
    for pattern in ("*.safetensors.index.json", "*.safetensors", "*.bin.index.json", "*.bin"):
        for file in sorted(path.glob(pattern)):
            return file
    return path
