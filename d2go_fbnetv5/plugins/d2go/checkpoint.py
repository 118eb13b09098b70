"""D2Go's checkpointer, which also starts from a search and from what the embedded host has trained."""

from d2go.checkpoint.fsdp_checkpoint import FSDPCheckpointer

from d2go_fbnetv5.plugins.detectron2.checkpoint import StartsFromSearches


class FBNetV5Checkpointer(StartsFromSearches, FSDPCheckpointer):
    """D2Go's checkpointer for a model with our backbone or for a search; see `StartsFromSearches`."""
