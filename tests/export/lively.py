"""Weights under which an untrained model's outputs depend on the image: a comparison shows more than rounding."""

import torch

from d2go_fbnetv5.models import ImageClassifier, LiteRCNN


def make_lively(model, images):
    """No block is the identity, batch norm has seen the images, and regions differ in class and score.

    Args:
        images: 3 x H x W each, of one size.
    """
    model.requires_grad_(False)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.weight.uniform_(0.5, 1)
            module.momentum = 0.9  # with less, features are all but constant and their differences rounding
    if isinstance(model, LiteRCNN):
        model.rpn.head.objectness.weight.normal_(0, 0.5)
    if isinstance(model, ImageClassifier):
        model.head.fc.weight.normal_(0, 0.3)
    boxes = torch.tensor([[8.0, 8, 40, 40], [20, 4, 60, 50]])
    batch = [{"image": image, "boxes": boxes, "box_labels": torch.tensor([1, 3])} for image in images]
    for _ in range(3):
        model.train()(batch)
    if isinstance(model, LiteRCNN):
        _spread_scores(model.eval(), batch)
    return model.eval()


def _spread_scores(model, batch):
    """Those of an untrained box head hardly differ."""
    seen = []
    hook = model.roi_head.box_head.register_forward_hook(lambda module, inputs, output: seen.append(output))
    model(batch)
    hook.remove()
    hidden, layer = torch.cat(seen), model.roi_head.predictor.classes
    layer.weight *= 2 / ((hidden - hidden.mean(0)) @ layer.weight.T).std()
    layer.bias.copy_(-layer.weight @ hidden.mean(0))
