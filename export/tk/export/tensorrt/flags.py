"""What differs between TensorRT 8.6, 10 and 11 when a network and its settings are made.

Members are looked up by name, never by number: the numbers moved with every major version.
"""

from __future__ import annotations

from typing import Any

from tk.runtime.errors import TkError

NONE, SAME, AMPERE = "none", "same", "ampere"
HARDWARE = {NONE: "NONE", SAME: "SAME_COMPUTE_CAPABILITY", AMPERE: "AMPERE_PLUS"}
"""How wide a plan is made -> member of `HardwareCompatibilityLevel`; `same` came with 10.10."""


def can_be_strong(trt: Any) -> bool:
    """Whether the types of the graph can be binding: 10 and 11; 8.6 chooses types by itself."""
    return hasattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED")


def network_flags(trt: Any) -> int:
    """Flags of `create_network`: explicit batch and strong types, where they can be said."""
    flags = 0
    for name in ("EXPLICIT_BATCH", "STRONGLY_TYPED"):
        member = getattr(trt.NetworkDefinitionCreationFlag, name, None)
        if member is not None:
            flags |= 1 << int(member)
    return flags


def set_flag(trt: Any, config: Any, name: str, why: str) -> None:
    """Set a builder flag.

    Args:
        name: of the member of `BuilderFlag`.
        why: what the user asked for, for the error.

    Raises:
        TkError: this TensorRT has no such flag.
    """
    config.set_flag(_flag(trt, name, why))


def clear_flag(trt: Any, config: Any, name: str) -> None:
    """Clear a builder flag that every version has."""
    config.clear_flag(_flag(trt, name, f"no {name}"))


def _flag(trt: Any, name: str, why: str) -> Any:
    member = getattr(trt.BuilderFlag, name, None)
    if member is None:
        raise TkError(
            f"TensorRT {trt.__version__} cannot do this: {why}", found=f"no BuilderFlag.{name}"
        )
    return member


def set_hardware(trt: Any, config: Any, wide: str) -> None:
    """Make the plan for this GPU alone, for its compute capability, or for 8.0 and newer.

    Raises:
        TkError: an unknown word, or one that this TensorRT does not know.
    """
    if wide not in HARDWARE:
        raise TkError(f"unknown hardware compatibility {wide!r}", expected=", ".join(HARDWARE))
    member = getattr(trt.HardwareCompatibilityLevel, HARDWARE[wide], None)
    if member is None:
        known = [word for word, name in HARDWARE.items() if _knows(trt, name)]
        raise TkError(
            f"TensorRT {trt.__version__} makes no plan of hardware compatibility {wide!r}",
            expected=", ".join(known),
        )
    config.hardware_compatibility_level = member


def _knows(trt: Any, level: str) -> bool:
    return hasattr(trt.HardwareCompatibilityLevel, level)


def set_previews(trt: Any, config: Any) -> None:
    """Let contexts share one profile: standard since 10, to be asked for in 8.6."""
    member = getattr(trt.PreviewFeature, "PROFILE_SHARING_0806", None)
    if member is not None:
        config.set_preview_feature(member, True)


def use_own_tactics_only(trt: Any, config: Any) -> None:
    """Keep cuDNN and cuBLAS out, where TensorRT would still ask for them (8.6).

    Raises:
        TkError: TensorRT refuses.
    """
    sources = 0
    for name in ("EDGE_MASK_CONVOLUTIONS", "JIT_CONVOLUTIONS"):
        member = getattr(trt.TacticSource, name, None)
        if member is not None:
            sources |= 1 << int(member)
    if not config.set_tactic_sources(sources):
        raise TkError(f"TensorRT {trt.__version__} refuses to build without cuDNN and cuBLAS")
    member = getattr(trt.PreviewFeature, "DISABLE_EXTERNAL_TACTIC_SOURCES_FOR_CORE_0805", None)
    if member is not None:
        config.set_preview_feature(member, True)
