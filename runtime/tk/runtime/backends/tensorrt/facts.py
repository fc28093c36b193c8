"""What a plan was built for, and whether this machine is that. Looked at before it is loaded."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tk.runtime.backends.tensorrt.gpu import Gpu
from tk.runtime.backends.tensorrt.library import LEAN, parse_version

LEAST, MOST = 3, 4
"""Numbers of a version that must be equal; some packages leave the fourth, a build, out."""

AMPERE = (8, 0)

REBUILD = "build it on this machine from its graph: tk plan BUNDLE"


def unfit(facts: Mapping[str, Any], library: str, version: str, gpu: Gpu, platform: str) -> str:
    """Say why a plan cannot be loaded here, "" when it can.

    A plan is native code for one TensorRT version, one platform and one kind of GPU. Loading
    another one can crash or give wrong numbers, so its facts in the manifest decide, not an
    attempt.

    Args:
        facts: of the artifact: `tensorrt`, `sm`, and if it was built wider than for this one kind
            of GPU `hardware` (`ampere`: 8.0 and newer), and `version_compatible`; `platform`, which
            plans of an older tk lack.
        library: `tensorrt` or `tensorrt_lean`.
        version: of that library.
        gpu: the one that would run it.
        platform: of this machine, `machine.platform_name`.
    """
    built, sm = facts.get("tensorrt"), facts.get("sm")
    if not isinstance(built, str) or not isinstance(sm, str):
        return "the manifest does not say for which TensorRT and which GPU it was built"
    if not _same_version(parse_version(built), parse_version(version)):
        return f"it was built by TensorRT {built}, here is {library} {version}"
    if facts.get("platform", platform) != platform:
        return f"it was built on {facts['platform']}, here is {platform}"
    if library == LEAN and facts.get("version_compatible") is not True:
        return "tensorrt_lean runs version-compatible plans only, and it is not one"
    wide = facts.get("hardware") == "ampere" and gpu.capability >= AMPERE
    if sm != gpu.sm and not wide:
        return (
            f"it was built for {sm} ({facts.get('gpu', 'unnamed')}), here is {gpu.sm} ({gpu.name})"
        )
    return ""


def _same_version(built: tuple[int, ...], here: tuple[int, ...]) -> bool:
    told = min(max(LEAST, min(len(built), len(here))), MOST)
    return built[:told] == here[:told]
