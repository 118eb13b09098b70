"""Adapters to other stacks: the only place that imports Detectron2 or D2Go, or adds to timm. The rest needs none."""
