"""Runs methods of a .pte file without our package: run_program.py FILE INPUTS OUTPUTS.

INPUTS holds a list of [method, input tensors...], OUTPUTS gets a list of lists of output tensors.
"""

import sys

import torch
from executorch.runtime import Runtime

file, inputs, outputs = sys.argv[1:]
program = Runtime.get().load_program(file)
results = []
for method, *tensors in torch.load(inputs, weights_only=True):
    results.append([x.clone() for x in program.load_method(method).execute(tensors)])
torch.save(results, outputs)
assert not any(name.startswith("d2go_fbnetv5") for name in sys.modules)
