from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from torchvision.transforms import Normalize

from tk.runtime.errors import TkError
from tk.train.embedder.model import EmbedNet


def pictures(count: int, size: int) -> torch.Tensor:
    rng = np.random.default_rng(0)
    return torch.from_numpy(rng.integers(0, 256, (count, size, size, 3), dtype=np.uint8))


@pytest.mark.parametrize(
    ("model_id", "size"), [("test_resnet", 32), ("test_vit", 48), ("mobilenetv4_conv_small", 64)]
)
def test_embed_net__uint8_in_unit_vectors_out(model_id: str, size: int) -> None:
    net = EmbedNet(model_id, 24, size)
    for mode in (net.train(), net.eval()):
        found = mode(pictures(3, size))
        assert found.shape == (3, 24) and found.dtype == torch.float32
        torch.testing.assert_close(found.norm(dim=1), torch.ones(3))
    with torch.autocast("cpu", torch.bfloat16):
        half = net(pictures(3, size))
    assert half.dtype == torch.float32
    torch.testing.assert_close(half.norm(dim=1), torch.ones(3))


def test_embed_net__normalises_as_timm_says() -> None:
    net = EmbedNet("test_resnet", 8, 32).eval()
    x = pictures(2, 32)
    data = net.backbone.pretrained_cfg
    transform = Normalize(data["mean"], data["std"])
    seen: list[torch.Tensor] = []
    net.backbone.register_forward_pre_hook(lambda _, arguments: seen.append(arguments[0]))
    net(x)
    expected = transform(x.permute(0, 3, 1, 2).double() / 255)
    torch.testing.assert_close(seen[0].double(), expected, atol=1e-5, rtol=0)


def test_embed_net__vit_pools_its_class_token() -> None:
    assert EmbedNet("test_vit", 8, 48).backbone.global_pool == "token"


def test_embed_net__trains_on_a_batch_of_one() -> None:
    net = EmbedNet("test_resnet", 8, 64).train()
    found = net(pictures(1, 64))
    found[0, 0].backward()
    assert bool(torch.isfinite(found).all())


def test_embed_net__weights_file(tmp_path: Path) -> None:
    source = timm.create_model("test_resnet", num_classes=5)
    torch.save(source.state_dict(), tmp_path / "weights.pth")
    net = EmbedNet("test_resnet", 8, 32, pretrained=True, weights=tmp_path / "weights.pth")
    for name, value in net.backbone.state_dict().items():
        assert torch.equal(value, source.state_dict()[name])
    with pytest.raises(TkError, match="does not fit the backbone"):
        EmbedNet("test_byobnet", 8, 32, weights=tmp_path / "weights.pth")
    (tmp_path / "noise.pth").write_bytes(b"no weights")
    with pytest.raises(TkError, match="no weights that can be loaded"):
        EmbedNet("test_resnet", 8, 32, weights=tmp_path / "noise.pth")


@pytest.mark.parametrize(
    ("model_id", "near"), [("resnet18_with_wings", "resnet18"), ("test_vit.nonsense", "test_vit.r")]
)
def test_embed_net__unknown_model_names_near_ones(model_id: str, near: str) -> None:
    with pytest.raises(TkError, match=near) as caught:
        EmbedNet(model_id, 8, 32)
    assert "--model_id" in caught.value.fix
