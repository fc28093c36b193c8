"""Run a whole model on probe inputs, part after part."""

from __future__ import annotations

from collections.abc import Mapping

from tk.runtime.backends.base import Arrays, Session
from tk.runtime.errors import TkError
from tk.runtime.manifest import Part


def run_parts(task: str, sessions: Mapping[str, Session], inputs: Arrays) -> dict[str, Arrays]:
    """Run a whole model on probe inputs, each part on what the parts before it gave.

    Args:
        task: of the bundle.
        sessions: part name -> session, in the order of running.
        inputs: what comes from outside, by name: `image` (B, H, W, 3) uint8, `boxes` (N, 4) on the
            first picture's canvas for a segmenter, token ids for a text detector.

    Returns:
        Part -> outputs.
    """
    given = dict(inputs)
    if task == "segmenter":  # its decoder serves one picture per call
        given["image"] = given["image"][:1]
    outputs: dict[str, Arrays] = {}
    for name, session in sessions.items():
        outputs[name] = session.run(chained_inputs(session.part, given))
        given |= outputs[name]
    return outputs


def chained_inputs(part: Part, given: Arrays) -> Arrays:
    """Inputs of a part among the values known so far; of one row where the part takes one.

    Raises:
        TkError: a value that no part before it gave, and that did not come from outside.
    """
    missing = [spec.name for spec in part.inputs if spec.name not in given]
    if missing:
        raise TkError(
            "the parts of the model do not fit together", found="no " + ", ".join(missing)
        )
    return {
        spec.name: given[spec.name][:1] if spec.shape[:1] == (1,) else given[spec.name]
        for spec in part.inputs
    }
