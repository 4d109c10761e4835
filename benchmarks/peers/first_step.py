"""Takes a first step with an optimizer of any package: in an environment that has only that package and torch.

python first_step.py '{"module": "torch.optim", "name": "Adam", "arguments": {}, "compiled": false, "shapes": [[64]]}'
"""

import importlib
import json
import sys

import torch


def main(text: str) -> None:
    """Imports the package, builds the optimizer and takes the step."""
    spec = json.loads(text)
    params = [torch.nn.Parameter(torch.rand(shape)) for shape in spec["shapes"]]
    for p in params:
        p.grad = torch.rand_like(p)
    optimizer = getattr(importlib.import_module(spec["module"]), spec["name"])(params, lr=1e-3, **spec["arguments"])
    step = torch.compile(optimizer.step) if spec["compiled"] else optimizer.step
    step()


if __name__ == "__main__":
    main(sys.argv[1])
