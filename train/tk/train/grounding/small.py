"""The small GroundingDINO that is trained from random weights: `--model small`."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

WIDTH = 64
QUERIES = 60
WORD_SCALE = 10.0


def small_config(vocabulary: int) -> Any:
    """Configuration of an MM-GroundingDINO of about a million weights.

    The MM sister, because it scales its scores: from random weights the other one's are 0 or 1.

    Args:
        vocabulary: number of token ids.
    """
    import transformers

    backbone: Any = transformers.ResNetConfig
    text: Any = transformers.BertConfig
    model: Any = transformers.MMGroundingDinoConfig
    return model(
        backbone_config=backbone(
            embedding_size=16,
            hidden_sizes=[24, 48, 96, 128],
            depths=[1, 1, 2, 1],
            layer_type="basic",
            # Strides 16 and 32: stride 8 would have four times as many places, and their time.
            out_indices=[3, 4],
        ),
        text_config=text(
            vocab_size=vocabulary,
            hidden_size=WIDTH,
            num_hidden_layers=2,
            num_attention_heads=4,
            intermediate_size=2 * WIDTH,
            max_position_embeddings=64,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
        ),
        d_model=WIDTH,
        encoder_layers=2,
        decoder_layers=2,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        encoder_ffn_dim=2 * WIDTH,
        decoder_ffn_dim=2 * WIDTH,
        num_queries=QUERIES,
        num_feature_levels=2,
        dropout=0.0,
        fusion_droppath=0.0,
    )


@torch.no_grad()
def start_values(network: Any) -> None:
    """Give random weights a scale at which a network of this width learns.

    The library draws linear layers with a deviation of 0.02, which suits 768 channels: with 64
    each layer would divide its input by six, and boxes learn nothing for hundreds of steps. What
    starts at zero stays.
    """
    for module in network.modules():
        if isinstance(module, nn.Linear) and module.weight.any():
            nn.init.xavier_uniform_(module.weight)
    # Zero in the library, which takes it for a box head: no query would know where it is.
    nn.init.xavier_uniform_(network.model.decoder.reference_points_head.layers[-1].weight)
    # A word must outweigh its place and type, which all words share.
    embeddings = network.model.text_backbone.embeddings
    embeddings.word_embeddings.weight.mul_(WORD_SCALE)


def thaw_norms(network: nn.Module) -> None:
    """Put live batch norms in the place of the library's frozen ones.

    Frozen statistics suit trained weights; from random ones they would be no norm at all. Names
    and meaning of the weights stay, so the library's modules can take them over afterwards.
    """
    for parent in list(network.modules()):
        for name, child in list(parent.named_children()):
            if type(child).__name__.endswith("FrozenBatchNorm2d"):
                norm = nn.BatchNorm2d(len(child.get_buffer("weight")))
                norm.load_state_dict(child.state_dict(), strict=False)
                setattr(parent, name, norm)
