"""The two ways to SAM-2: the original package, or Hugging Face transformers."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from tk.runtime.errors import TkError
from tk.train.data.masks.masker import Masker, lacks


def open_masker(cfg: str, ckpt: str, device: str = "auto") -> Masker:
    """Open SAM-2.

    Args:
        cfg: configuration of the sam2 package, by name or as a yaml file; empty for Hugging Face.
        ckpt: with `cfg` the .pt checkpoint, without it a Hugging Face folder or id.
        device: auto, cpu, cuda or cuda:N.

    Raises:
        TkError: neither is given, or one of them is not what it should be.
        EnvironmentLacks: the package or the device is missing.
    """
    if not ckpt:
        raise TkError(
            "no SAM-2 checkpoint to make masks with",
            expected="one of these two:\n"
            "    --sam2_cfg configs/sam2.1/sam2.1_hiera_l.yaml --sam2_ckpt sam2.1_hiera_large.pt\n"
            "    --sam2_ckpt facebook/sam2.1-hiera-large  (a Hugging Face id or a local folder)",
            found=f"--sam2_cfg {cfg} alone" if cfg else "neither option",
        )
    if find_spec("torch") is None:
        raise lacks("torch", "train")
    from tk.train.run.device import choose_device

    where = choose_device(device)
    if cfg:
        from tk.train.data.masks.sam2_package import PackageMasker

        return PackageMasker(cfg, Path(ckpt).expanduser(), where)
    from tk.train.data.masks.sam2_hf import HfMasker

    return HfMasker(ckpt, where)
