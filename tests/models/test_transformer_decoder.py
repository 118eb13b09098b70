import math

import pytest
import torch
from torch import nn

from d2go_fbnetv5.models.lite_maskformer import PixelDecoder, SegmentationModule, valid_features
from d2go_fbnetv5.models.transformer_decoder import Attention, TransformerDecoder, sine_positions


def decoder(**options):
    torch.manual_seed(0)
    return TransformerDecoder(12, num_queries=6, dim=32, num_heads=4, feedforward_dim=64, **options).eval()


def test_attention_is_torchs():
    torch.manual_seed(0)
    ours, theirs = Attention(32, 4).eval(), nn.MultiheadAttention(32, 4, batch_first=True).eval()
    layers = (ours.query, ours.key, ours.value)
    with torch.no_grad():
        theirs.in_proj_weight.copy_(torch.cat([layer.weight for layer in layers]))
        theirs.in_proj_bias.copy_(torch.cat([layer.bias for layer in layers]))
        theirs.out_proj.load_state_dict(ours.out.state_dict())
    query, key, value = torch.randn(2, 5, 32), torch.randn(2, 7, 32), torch.randn(2, 7, 32)
    valid = torch.ones(2, 7, dtype=torch.bool)
    valid[1, 4:] = False
    expected, _ = theirs(query, key, value, key_padding_mask=~valid, need_weights=False)
    torch.testing.assert_close(ours(query, key, value, valid), expected)


def test_attention_needs_dim_divisible_by_heads():
    with pytest.raises(ValueError, match="30.*multiple of num_heads \\(4\\)"):
        Attention(30, 4)


def test_positions_by_hand():
    valid = torch.tensor([[[True, True, False], [True, True, False]]])
    positions = sine_positions(valid, 8)
    assert positions.shape == (1, 8, 2, 3)
    # Row 1 of 2 and column 1 of 2 are both half way: pi. The second frequency is 100.
    expected = [math.sin(math.pi), math.cos(math.pi), math.sin(math.pi / 100), math.cos(math.pi / 100)]
    torch.testing.assert_close(positions[0, :4, 0, 0], torch.tensor(expected), atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(positions[0, 4:, 0, 0], torch.tensor(expected), atol=1e-6, rtol=1e-5)


@torch.no_grad()
def test_padding_does_not_change_the_queries():
    model = decoder()
    feature = torch.randn(1, 12, 3, 4)
    alone = model(feature)[-1]
    padded = torch.full((1, 12, 5, 6), 1e3)
    padded[:, :, :3, :4] = feature
    valid = torch.zeros(1, 5, 6, dtype=torch.bool)
    valid[:, :3, :4] = True
    torch.testing.assert_close(model(padded, valid)[-1], alone, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_without_padding_a_mask_changes_nothing():
    model, feature = decoder(), torch.randn(2, 12, 3, 4)
    valid = torch.ones(2, 3, 4, dtype=torch.bool)
    torch.testing.assert_close(model(feature, valid)[-1], model(feature)[-1], atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_first_layers_queries_do_not_depend_on_the_image():
    model = decoder()
    position = model.queries.weight[None]
    constant = model.layers[0].attend_queries(torch.zeros_like(position), position)
    seen = []
    model.layers[0].norms[0].register_forward_hook(lambda module, inputs, output: seen.append(output))
    model(torch.randn(2, 12, 3, 4))
    torch.testing.assert_close(seen[0], constant.expand(2, -1, -1))


def test_one_output_a_layer():
    assert len(decoder(num_layers=3)(torch.randn(1, 12, 2, 2))) == 3
    with pytest.raises(ValueError, match="num_layers is 0"):
        decoder(num_layers=0)


def test_heads_shapes():
    pixels = PixelDecoder(10, 64)(torch.randn(2, 10, 5, 7))
    classes, masks = SegmentationModule(9, 32, 64)(torch.randn(2, 6, 32), pixels)
    assert pixels.shape == (2, 64, 5, 7)
    assert classes.shape == (2, 6, 10) and masks.shape == (2, 6, 5, 7)


def test_valid_features_by_hand():
    valid = valid_features([(64, 96), (33, 1)], (64, 96), (2, 3), torch.device("cpu"))
    assert valid.int().tolist() == [[[1, 1, 1], [1, 1, 1]], [[1, 0, 0], [1, 0, 0]]]
