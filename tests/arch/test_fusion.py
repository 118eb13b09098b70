import pytest
import torch

from d2go_fbnetv5.arch import Fusion, build_family
from d2go_fbnetv5.arch.fusion import repeat_channels, weigh


def test_channels_repeat_and_the_rest_is_dropped():
    x = torch.arange(3.0).reshape(1, 3, 1, 1)
    assert repeat_channels(x, 7).flatten().tolist() == [0, 1, 2, 0, 1, 2, 0]
    assert repeat_channels(x, 3) is x
    assert repeat_channels(x, 4).flatten().tolist() == [0, 1, 2, 0]


def test_groups_of_neighbouring_channels_are_averaged_with_zeros_at_the_end():
    fusion = Fusion((2, 5), (4, 8))
    x = torch.tensor([1.0, 3.0, 5.0, 7.0, 9.0]).reshape(1, 5, 1, 1)
    # C'_in = ceil(5 / 2) * 2 = 6; groups of three: (1 + 3 + 5) / 3, (7 + 9 + 0) / 3.
    torch.testing.assert_close(fusion(x, 1, 0, (1, 1)).flatten(), torch.tensor([3.0, 16 / 3]))
    weight = torch.tensor([[1.0, 1, 1, 0, 0], [0, 0, 0, 1, 1]]) / 3
    torch.testing.assert_close(fusion.channel_weight(1, 0)[:, :, 0, 0], weight)


@pytest.mark.parametrize("name", ["A", "A_C", "F"])
def test_matches_appendix_b_literally(name):
    """The fast order (shrink first) equals the paper's (resize, then match channels)."""
    family = build_family(name)
    fusion = Fusion(family.channels, family.strides, family.offsets)
    sizes = family.feature_sizes((192, 224))
    features = [torch.randn(2, c, *s) for c, s in zip(family.channels, sizes, strict=True)]
    for source in range(4):
        for target in range(4):
            found = fusion(features[source], source, target, sizes[target])
            x, c_out = features[source], family.channels[target]
            assert found.shape == (2, c_out, *sizes[target])
            if source == target:
                assert found is x
                continue
            if source < target:
                step = family.strides[target] // family.strides[source]
                start = (family.offsets[target] - family.offsets[source]) // family.strides[source]
                x = x[:, :, start::step, start::step][:, :, : sizes[target][0], : sizes[target][1]]
                expected = x.repeat(1, -(-c_out // x.shape[1]), 1, 1)[:, :c_out]
            else:
                x = torch.nn.functional.interpolate(x, size=sizes[target], mode="nearest")
                group = -(-x.shape[1] // c_out)
                padded = torch.cat([x, x.new_zeros(2, group * c_out - x.shape[1], *x.shape[2:])], dim=1)
                expected = padded.view(2, c_out, group, *x.shape[2:]).mean(dim=2)
            torch.testing.assert_close(found, expected)


def test_going_down_takes_the_feature_on_the_same_pixel():
    """Features that hold their own pixel's column still do after fusion, whatever the padding."""
    for name in ("A", "C", "E", "F", "N"):
        family = build_family(name)
        fusion = Fusion((1, 1, 1, 1), family.strides, family.offsets)
        sizes = family.feature_sizes((171, 203))
        columns = [
            (family.offsets[p] + family.strides[p] * torch.arange(w)).float().expand(1, 1, h, w)
            for p, (h, w) in enumerate(sizes)
        ]
        for source in range(4):
            for target in range(source + 1, 4):
                assert torch.equal(fusion(columns[source], source, target, sizes[target]), columns[target])


def test_unequal_lengths_are_refused():
    with pytest.raises(ValueError, match="equally long"):
        Fusion((1, 2), (4, 8, 16))


@pytest.mark.parametrize("name", ["A", "N"])
def test_gradients_stay_channels_last_and_are_the_same(name):
    family = build_family(name)
    fusion = Fusion(family.channels, family.strides, family.offsets)
    sizes = family.feature_sizes((96, 128))
    for source in range(4):
        for target in range(4):
            if source == target:
                continue
            plain = torch.randn(2, family.channels[source], *sizes[source]).requires_grad_()
            last = plain.detach().clone(memory_format=torch.channels_last).requires_grad_()
            found = [fusion(x, source, target, sizes[target]) for x in (plain, last)]
            assert torch.equal(*found)
            gradient = torch.randn_like(found[0])
            found[0].backward(gradient)
            found[1].backward(gradient.contiguous(memory_format=torch.channels_last))
            torch.testing.assert_close(plain.grad, last.grad)
            assert last.grad.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("name", ["A", "N"])
@pytest.mark.parametrize("size", [(96, 128), (171, 203)])
def test_a_sum_over_paths_is_the_sum_of_what_each_brings(name, size):
    family = build_family(name)
    fusion = Fusion(family.channels, family.strides, family.offsets)
    sizes = family.feature_sizes(size)
    features = [
        torch.randn(2, c, *s, dtype=torch.double, requires_grad=True)
        for c, s in zip(family.channels, sizes, strict=True)
    ]
    before = [x.detach().clone() for x in features]
    weights = torch.rand(4, dtype=torch.double, requires_grad=True)
    for target in range(4):
        others = [path for path in range(4) if path != target]
        for bits in range(8):
            sources = [path for i, path in enumerate(others) if bits >> i & 1]
            for given in (None, weights):
                brought = {s: fusion(features[s], s, target, sizes[target]) for s in sources}
                expected = features[target] + sum(
                    x if given is None else x * given[s] for s, x in brought.items()
                )
                found = fusion.add_all(
                    features, sources, target, given if given is None else dict(enumerate(given))
                )
                torch.testing.assert_close(found, expected)
                used = [features[p] for p in (*sources, target)] + (
                    [given] if given is not None and sources else []
                )
                factor = torch.randn_like(found)
                for a, b in zip(
                    torch.autograd.grad((found * factor).sum(), used),
                    torch.autograd.grad((expected * factor).sum(), used),
                    strict=True,
                ):
                    torch.testing.assert_close(a, b)
    assert all(torch.equal(x, y) for x, y in zip(features, before, strict=True))


def test_features_keep_their_type_under_autocast(monkeypatch):
    """Autocast for GPUs makes what nearest interpolation gives float32, and so all that it is added to."""
    to_float32 = torch.nn.functional.interpolate
    monkeypatch.setattr(torch.nn.functional, "interpolate", lambda x, **how: to_float32(x.float(), **how))
    family = build_family("N")
    fusion = Fusion(family.channels, family.strides, family.offsets)
    sizes = family.feature_sizes((96, 128))
    features = [
        torch.randn(2, c, *s, dtype=torch.bfloat16) for c, s in zip(family.channels, sizes, strict=True)
    ]
    for target in range(4):
        others = [path for path in range(4) if path != target]
        assert fusion.add_all(features, others, target).dtype == torch.bfloat16
        assert {fusion(features[s], s, target, sizes[target]).dtype for s in others} == {torch.bfloat16}


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16])
def test_a_weights_gradient_is_summed_in_float32(kind):
    torch.manual_seed(0)
    x, gradient = (torch.randn(2, 8, 16, 16).add(0.5).to(kind) for _ in range(2))
    weight = torch.tensor(0.5, requires_grad=True)
    weigh(x, weight).to(kind).backward(gradient)
    expected = float((x.double() * gradient.double()).sum())
    assert weight.grad.dtype is torch.float32
    assert float(weight.grad) == pytest.approx(expected, rel=1e-5)
    assert float((x * gradient).sum()) != pytest.approx(
        expected, rel=1e-5
    )  # as it would be in half precision
