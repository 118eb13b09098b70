"""Memory that is estimated on the meta device is what a CPU saves."""

import torch

from d2go_fbnetv5 import Supernet, Topology


def test_the_estimate_is_what_a_backward_pass_needs(load_benchmark):
    memory = load_benchmark("memory")
    topologies = [Topology([[1, 0, 1, 0], [0, 1, 1, 0]]), Topology.full(2)]
    found = memory.step_bytes("N", 2, 64, 2, torch.float32, topologies)
    network = Supernet("N", 2).to(memory_format=torch.channels_last).train()
    images = torch.rand(2, 3, 64, 64).contiguous(memory_format=torch.channels_last)
    alone = [memory.saved_bytes(lambda t=t: network(images, t), network) for t in topologies]
    assert found["most"] == alone[1] > alone[0] and found["mean"] == sum(alone) / 2
    # What the two have in common is held once.
    assert alone[1] < found["together"] < sum(alone)
    half = memory.step_bytes("N", 2, 64, 2, torch.bfloat16, topologies)
    assert half["most"] < 0.6 * found["most"]
