"""Adapters to other stacks: the only place that imports Detectron2 or D2Go. The rest needs none of it."""
