"""Text detector: pictures and a prompt in, proposals out (GroundingDINO and its MM sister)."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tk.runtime.backends.base import Arrays, Session
from tk.runtime.boxes import clip, valid
from tk.runtime.bundle import Bundle
from tk.runtime.errors import TkError
from tk.runtime.heads.detector import CompactDetector, Detector, DetectorOptions, Proposals
from tk.runtime.preprocess import Image, Placement, fit
from tk.runtime.text.phrases import assemble_phrases
from tk.runtime.text.prompts import keep_features, load_features, prompt_file, prompt_key
from tk.runtime.text.tokenizer import Prompt, Tokenizer, foreign_phrases

TOKENIZER = "tokenizer.json"
DEFAULT_PROMPT = "tool."


@dataclass(frozen=True)
class TextOptions:
    """What a text detector can be told beside `DetectorOptions`.

    Attributes:
        prompt: phrases divided by dots; None takes the baked one, or `DEFAULT_PROMPT`.
        text_threshold: tokens scored above it make the phrase of a box.
    """

    prompt: str | None = None
    text_threshold: float = 0.25


class TextDetector:
    """A detector that finds what a prompt names.

    The text side runs once per prompt: its features are kept in the bundle, or in memory where
    that cannot be written to.

    Args:
        bundle: of task `detector`, with `text` among its settings.
        options: thresholds.
        text: prompt and its threshold.
        session_options: passed to `Bundle.session` (device, precision, backend, threads).

    Raises:
        TkError: a prompt that the model cannot take, or another than the baked one.
        EnvironmentLacks: the package `tokenizers` is not installed.
    """

    def __init__(
        self,
        bundle: Bundle,
        options: DetectorOptions | None = None,
        text: TextOptions | None = None,
        **session_options: Any,
    ) -> None:
        self.manifest = bundle.manifest
        self.options = options or DetectorOptions()
        self.text = text or TextOptions()
        facts = self.manifest.settings["text"]
        self.tokenizer = open_tokenizer(bundle.path, facts)
        self.prompt = self._read_prompt(facts["baked"])
        self.session: Session = bundle.session("model", **session_options)
        self._text_inputs: Arrays = {}
        if not facts["baked"]:
            features = _text_features(bundle, self.prompt, session_options)
            self._text_inputs = self.prompt.model_inputs(features)

    def _read_prompt(self, baked: str) -> Prompt:
        given = self.text.prompt
        wanted = self.tokenizer.read((baked or DEFAULT_PROMPT) if given is None else given)
        if strange := foreign_phrases(wanted.text):
            print(
                f"warning: the published weights of text detectors read English; "
                f"{', '.join(map(repr, strange))} will find things at random",
                file=sys.stderr,
            )
        if baked and wanted.ids != self.tokenizer.read(baked).ids:
            raise TkError(
                "this detector was exported for one prompt",
                expected=f"--prompt {baked!r}, or none",
                found=repr(self.text.prompt),
                fix="export the model again without --bake: then the prompt is free",
            )
        return wanted

    @property
    def sessions(self) -> tuple[Session, ...]:
        """Everything that is open."""
        return (self.session,)

    def detect(self, images: Sequence[Image]) -> list[Proposals]:
        """Find what the prompt names.

        Args:
            images: each (H, W, 3) uint8 RGB, any sizes.

        Returns:
            One `Proposals` per picture, in order; words are the library's phrases.
        """
        found: list[Proposals] = []
        size = self.manifest.parts["model"].max_batch
        for start in range(0, len(images), size):
            chunk = images[start : start + size]
            fitted = [fit(self.manifest.image, image) for image in chunk]
            inputs: Arrays = {
                "image": np.stack([canvas for canvas, _ in fitted]),
                "valid_hw": np.asarray([place.valid_hw for _, place in fitted], np.int32),
            }
            outputs = self.session.run(inputs | self._text_inputs)
            for row, (image, (_, placement)) in enumerate(zip(chunk, fitted, strict=True)):
                boxes = np.asarray(outputs["boxes"][row], np.float32)
                scores = np.asarray(outputs["token_scores"][row], np.float32)
                found.append(self._proposals(boxes, scores, placement, image))
        return found

    def _proposals(
        self,
        boxes: NDArray[np.float32],
        token_scores: NDArray[np.float32],
        placement: Placement,
        image: Image,
    ) -> Proposals:
        """Keep what is above the threshold; (Q, 4) canvas boxes and (Q, T) scores."""
        score = token_scores.max(axis=1)
        likely = np.flatnonzero(score > np.float32(self.options.box_threshold))
        score = score[likely]
        boxes = clip(placement.to_image(boxes[likely]), image.shape[1], image.shape[0])
        keep = np.flatnonzero(valid(boxes))
        keep = keep[self.options.choose(boxes[keep], score[keep])]
        words = assemble_phrases(
            token_scores[likely[keep]],
            self.prompt.ids,
            self.text.text_threshold,
            self.tokenizer.limit,
            self.tokenizer.write,
        )
        return Proposals(boxes[keep], score[keep], tuple(words))


def open_detector(
    bundle: Bundle, options: DetectorOptions, text: TextOptions, **session_options: Any
) -> Detector:
    """Open the head that a detector bundle needs.

    Raises:
        TkError: a prompt for a detector that reads none.
    """
    if "text" in bundle.manifest.settings:
        return TextDetector(bundle, options, text, **session_options)
    if text.prompt is not None:
        raise TkError(
            f"the detector {bundle.path.name} reads no prompt: it knows its classes",
            expected="no --prompt",
            found=f"--prompt {text.prompt!r}",
            fix="give a text detector (tk export of a GroundingDINO), or leave --prompt out",
        )
    return CompactDetector(bundle, options, **session_options)


def open_tokenizer(bundle: Path, facts: dict[str, Any]) -> Tokenizer:
    """Open the tokenizer of a bundle; `facts` is `settings["text"]` of its manifest."""
    data = (bundle / TOKENIZER).read_bytes()
    return Tokenizer(data, facts["max_tokens"], cleanup=facts["cleanup"], name=bundle.name)


def _text_features(
    bundle: Bundle, prompt: Prompt, session_options: dict[str, Any]
) -> NDArray[np.float32]:
    """Features of a prompt, (1, T, D) float32, kept or computed."""
    names = ("device", "precision", "backend")
    asked = " ".join(str(session_options.get(name, "auto")) for name in names)
    key = prompt_key(f"{bundle.sha256} {asked}", prompt)
    file = prompt_file(bundle.path, prompt, key)
    width = int(bundle.manifest.parts["text"].outputs[0].shape[-1])
    kept = load_features(file, key, (1, len(prompt.ids), width))
    if kept is not None:
        return kept
    # Opened for one call: the text side is a third of the weights and is not needed any more.
    with bundle.session("text", **session_options) as session:
        features = np.asarray(session.run(prompt.text_inputs())["text_features"], np.float32)
    keep_features(file, key, features)
    return features
