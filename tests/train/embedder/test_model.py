from __future__ import annotations

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


@pytest.mark.parametrize(
    ("model_id", "size", "pool"),
    [("test_vit", 48, "token"), ("test_vit2", 48, "avg"), ("eva02_tiny_patch14_224", 28, "avg")],
)
def test_embed_net__vit_pools_its_class_token_if_it_can(
    model_id: str, size: int, pool: str
) -> None:
    """Never a pooling whose norm the published weights do not have."""
    net = EmbedNet(model_id, 8, size)
    assert net.backbone.global_pool == pool
    published = timm.create_model(model_id, num_classes=0).state_dict().keys()
    assert net.backbone.state_dict().keys() <= published


def test_embed_net__trains_on_a_batch_of_one() -> None:
    net = EmbedNet("test_resnet", 8, 64).train()
    found = net(pictures(1, 64))
    found[0, 0].backward()
    assert bool(torch.isfinite(found).all())


def test_embed_net__features_and_head_apart_are_the_whole() -> None:
    net = EmbedNet("test_vit", 8, 32).eval()
    x = pictures(2, 32)
    feature = net.features(x)
    assert feature.shape == (2, net.feature_size) and feature.dtype == torch.float32
    assert torch.equal(net.project(feature), net(x))
    with torch.autocast("cpu", torch.bfloat16):
        half = net.features(x)
        assert net.project(half).dtype == torch.float32
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, feature, atol=0.1, rtol=0.1)


def test_embed_net__head_norm() -> None:
    names = {
        "head.0.weight", "head.0.bias", "head.1.weight", "head.1.bias", "head.3.weight",
        "head.3.bias", "head.1.running_mean", "head.1.running_var", "head.1.num_batches_tracked",
    }  # fmt: skip

    def head(net: EmbedNet) -> set[str]:
        return {name for name in net.state_dict() if name.startswith("head.")}

    assert head(EmbedNet("test_resnet", 8, 32)) == names  # as in checkpoints of the first version
    layer = EmbedNet("test_resnet", 8, 32, head_norm="layer").train()
    assert head(layer) == {name for name in names if "running" not in name and "num" not in name}
    features = torch.randn(4, layer.feature_size)
    alone = torch.cat([layer.project(row[None]) for row in features])
    torch.testing.assert_close(alone, layer.project(features))  # no row looks at another


@pytest.mark.parametrize(
    ("model_id", "near"), [("resnet18_with_wings", "resnet18"), ("test_vit.nonsense", "test_vit.r")]
)
def test_embed_net__unknown_model_names_near_ones(model_id: str, near: str) -> None:
    with pytest.raises(TkError, match=near) as caught:
        EmbedNet(model_id, 8, 32)
    assert "--model_id" in caught.value.fix
