"""SAM-2 through Hugging Face transformers: a local folder or a hub id."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from tk.runtime.errors import TkError
from tk.runtime.preprocess import Image
from tk.train.data.masks.masker import Answer, config_for, lacks, one_line

_HUB_ID = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?")


class HfMasker:
    """`Sam2Model` on batches of crops.

    Args:
        source: folder written by `save_pretrained`, or a hub id (`facebook/sam2.1-hiera-large`).
        device: where the model runs.

    Raises:
        TkError: no such folder or id, a gated one, a broken one, or not SAM-2.
        EnvironmentLacks: there is no package `transformers`.
    """

    def __init__(self, source: str, device: torch.device) -> None:
        try:
            from transformers import AutoConfig, Sam2Config, Sam2Model, Sam2Processor
        except ModuleNotFoundError as error:
            raise lacks(str(error.name), "export") from None
        place = _place(source)
        try:
            found: Any = AutoConfig.from_pretrained(place)
            _check_kind(source, found.model_type)
            # The image part of a video configuration; left to itself Sam2Model warns about it.
            config = Sam2Config(
                vision_config=found.vision_config,
                prompt_encoder_config=found.prompt_encoder_config,
                mask_decoder_config=found.mask_decoder_config,
            )
            self._processor: Any = Sam2Processor.from_pretrained(place)
            # float32 by name: the default is the type the file was saved in.
            opened: Any = Sam2Model.from_pretrained(
                place, config=config, dtype=torch.float32, output_loading_info=True
            )
        except TkError:
            raise
        except Exception as error:  # OSError, ValueError, SafetensorError, errors of the network
            raise TkError(
                f"no SAM-2 model can be opened from {source}",
                expected="a folder with config.json, preprocessor_config.json and "
                "model.safetensors, or a hub id that this machine can reach",
                found=one_line(error),
                fix="check the name; `hf auth login` for a gated one; for a broken-off download "
                "fetch it again",
            ) from None
        model, loading = opened
        _check_whole(source, loading)
        self._device = device
        self._model: Any = model.eval().to(device)

    def masks(self, images: Sequence[Image]) -> list[Answer]:
        """As `Masker.masks`."""
        # Boxes are nested as image, box, corner. The layout is stated, since it would be guessed
        # from the shape, and a crop 3 pixels high guessed as channels first.
        inputs = self._processor(
            images=list(images),
            input_boxes=[[[0.0, 0.0, *map(float, image.shape[1::-1])]] for image in images],
            input_data_format="channels_last",
            return_tensors="pt",
        ).to(self._device)
        with torch.inference_mode():
            out = self._model(
                pixel_values=inputs["pixel_values"],
                input_boxes=inputs["input_boxes"],
                multimask_output=True,
            )
        expected, best = out.iou_scores[:, 0].float().max(dim=1)  # (B, boxes, 3)
        answers = []
        for index, image in enumerate(images):
            # (1, 1, h, w) logits: only the chosen mask is enlarged, by the processor's own rule.
            logits = out.pred_masks[index : index + 1, 0, int(best[index])].float()[None]
            [mask] = self._processor.post_process_masks([logits], [image.shape[:2]])
            answers.append((mask[0, 0].cpu().numpy(), float(expected[index])))
        return answers


def _place(source: str) -> str:
    """Folder or id; a path that is not there must not be asked of the hub."""
    folder = Path(source).expanduser()
    if folder.is_dir():
        return str(folder)
    if folder.is_file() or folder.suffix in (".pt", ".pth"):
        right = config_for(folder.name) or "configs/sam2.1/sam2.1_hiera_l.yaml"
        raise TkError(
            f"{source} is a single file, which needs its configuration",
            expected="a Hugging Face folder or id, or --sam2_cfg beside the file",
            fix=f"add --sam2_cfg {right}",
        )
    if not _HUB_ID.fullmatch(source):
        raise TkError(f"the folder {source} does not exist", expected="a SAM-2 folder or hub id")
    return source


def _check_kind(source: str, kind: str) -> None:
    # The released folders call themselves sam2_video: images and videos share the weights.
    if kind not in ("sam2", "sam2_video"):
        raise TkError(f"{source} is another model", expected="sam2, sam2_video", found=kind)


def _check_whole(source: str, loading: Any) -> None:
    """Refuse absent weights: transformers fills them with random numbers and only warns."""
    absent = sorted(loading["missing_keys"]) + [str(key) for key in loading["mismatched_keys"]]
    if absent:
        raise TkError(
            f"{source} does not hold all weights of SAM-2",
            found=f"{len(absent)} absent: " + ", ".join(absent[:3]),
        )
