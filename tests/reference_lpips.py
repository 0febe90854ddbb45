"""LPIPS by our class and by the `lpips` package itself, run by tests/test_lpips.py where torchvision can be seen.

The real backbones are not at hand. Random weights are put in their place, in a cache of torch's in the folder given on
the command line, so that finding, loading and calling are the real thing and only the numbers mean nothing.
"""

import json
import sys
import warnings
from pathlib import Path

import lpips
import torch
import torchvision
from torch import Tensor

from diffaccel.metrics.inception import MissingWeights
from diffaccel.metrics.lpips import BACKBONES, Lpips, weights_file

warnings.simplefilter("ignore")


def refusal(net: str) -> str:
    try:
        Lpips(net)
    except (MissingWeights, OSError) as error:
        return f"{type(error).__name__}: {error}"
    return ""


def error(scorer: Lpips, *pictures: Tensor) -> str:
    try:
        scorer(*pictures)
    except (TypeError, ValueError) as error:
        return f"{type(error).__name__}: {error}"
    return ""


def random_weights(model: str) -> dict[str, Tensor]:
    """He's initialisation for the convolutions; the classifier, which LPIPS leaves out, is a single zero on disk."""
    with torch.device("meta"):
        shapes = getattr(torchvision.models, model)(weights=None).state_dict()
    return {
        name: torch.randn(x.shape) * (2 / x[0].numel()) ** 0.5
        if name.startswith("features")
        else torch.zeros(1).expand(x.shape)
        for name, x in shapes.items()
    }


def measure(net: str) -> dict[str, object]:
    """Refusals first, then both values of the same pictures."""
    torch.manual_seed(0)
    backbone, side = BACKBONES[net], BACKBONES[net].side
    found: dict[str, object] = {"missing": refusal(net)}
    file = weights_file(net)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(b"no weights")
    found["damaged"] = refusal(net)
    torch.save(random_weights(backbone.model), file)

    scorer = Lpips(net)
    a, b = torch.rand(5, 3, 40, 48), torch.rand(5, 3, 40, 48)
    b[3] = a[3]
    theirs = lpips.LPIPS(net=net, verbose=False)
    with torch.no_grad():
        found["theirs"] = [theirs(2 * x[None] - 1, 2 * y[None] - 1).item() for x, y in zip(a, b, strict=True)]
        found["in 0..1 by mistake"] = theirs(a[:1], b[:1]).item()
    found |= {"ours": scorer(a, b, batch=2).tolist(), "swapped": scorer(b, a).tolist(), "identity": scorer.identity}
    small = torch.rand(2, 1, 3, side, side + 9)
    found["smallest"] = scorer(*small).item()
    found["too small"] = error(scorer, *small[..., 1:, :])
    found["gray"] = error(scorer, a[:, :1], b[:, :1])
    found["bytes"] = error(scorer, a.byte(), b.byte())
    found["file"] = str(file)
    return found


if __name__ == "__main__":
    torch.hub.set_dir(Path(sys.argv[1]))
    print(json.dumps({net: measure(net) for net in BACKBONES}))  # noqa: T201
