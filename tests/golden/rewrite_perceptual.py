"""Write perceptual.json: distances that the package stlpips-pytorch itself gives, and the digests of its weight files.

    python tests/golden/rewrite_perceptual.py [--print]

The package imports modules that its distance does not use; those that are not installed are replaced by empty ones here.
"""

import importlib
import json
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType

import torch

from medvar_model.training.perceptual import perceptual_source

UNUSED = ("IPython", "torchsummary", "torchvision", "torchvision.models", "torchvision.transforms")
NETS = {"st-lpips": "vgg", "st-lpips-alex": "alex"}
SIDES = (32, 64, 67)


class Empty(ModuleType):
    """A module that has every name and does nothing."""

    __path__ = ()

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return Empty(name)


def stand_in() -> None:
    for name in UNUSED:
        try:
            importlib.import_module(name)
        except ImportError:
            module = Empty(name)
            module.__spec__ = ModuleSpec(name, None)
            sys.modules[name] = module


def measured() -> dict:
    stand_in()
    from stlpips_pytorch import stlpips

    distances, digests = {}, {}
    for kind, net in NETS.items():
        package = stlpips.LPIPS(net=net, variant="shift_tolerant").eval()
        digests[kind], distances[kind] = perceptual_source(kind, ()).digest, {}
        for side in SIDES:
            generator = torch.Generator().manual_seed(side)
            x, y = (torch.rand(1, 3, side, side, generator=generator) * 2 - 1 for _ in range(2))
            with torch.no_grad():
                distances[kind][str(side)] = round(float(package(x, y)), 8)
    return {"digests": digests, "distances": distances}


if __name__ == "__main__":
    made = measured()
    if "--print" in sys.argv:
        print(json.dumps(made))
    else:
        Path(__file__).with_name("perceptual.json").write_text(json.dumps(made, indent=2) + "\n")
