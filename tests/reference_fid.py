"""What clean-fid, torch-fidelity and torchmetrics say of the inputs in a folder; run by ``references.py``.

    python tests/references.py tests/reference_fid.py FOLDER

The folder holds ``inputs.npz``, its pictures ``a`` and ``b`` as files too, and weights of Inception under the names of
the three files. ``results.npz`` is written next to them.
"""

import sys
from pathlib import Path

import numpy as np
import torch
import torch_fidelity
from cleanfid import fid as cleanfid
from cleanfid.inception_pytorch import InceptionV3
from cleanfid.inception_torchscript import InceptionV3W
from cleanfid.resize import build_resizer
from small_extractor import Small
from torch import Tensor
from torch_fidelity.feature_extractor_base import FeatureExtractorBase
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
from torch_fidelity.interpolate_compat_tensorflow import interpolate_bilinear_2d_like_tensorflow1x
from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric
from torchmetrics.image.fid import FrechetInceptionDistance, NoTrainInceptionV3

SIZE = (299, 299)


class SmallTf1(FeatureExtractorBase):
    """The small network behind torch-fidelity's resize."""

    def __init__(self, name: str, features_list: list[str], **kwargs: object) -> None:
        super().__init__(name, features_list)
        self.network = Small()

    @staticmethod
    def get_provided_features_list() -> tuple[str, ...]:
        return ("all",)

    @staticmethod
    def get_default_feature_layer_for_metric(metric: str) -> str:
        return "all"

    @staticmethod
    def can_be_compiled() -> bool:
        return False

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return (self.network(interpolate_bilinear_2d_like_tensorflow1x(x.float(), SIZE, align_corners=False)),)


class SmallAntialiased(torch.nn.Module):
    """The small network behind torchmetrics' resize."""

    num_features = 24

    def __init__(self) -> None:
        super().__init__()
        self.network = Small()

    def forward(self, x: Tensor) -> Tensor:
        resized = torch.nn.functional.interpolate(
            x.float(), size=SIZE, mode="bilinear", align_corners=False, antialias=True
        )
        return self.network(resized)


def distances(folder: Path, a: Tensor, b: Tensor) -> dict[str, float]:
    """The distance of two sets of pictures, by each of the three from the pictures to the number."""
    torch_fidelity.register_feature_extractor("small", SmallTf1)
    by_torch_fidelity = torch_fidelity.calculate_metrics(
        input1=str(folder / "a"),
        input2=str(folder / "b"),
        feature_extractor="small",
        fid=True,
        cuda=False,
        verbose=False,
        save_cpu_ram=True,
    )
    by_torchmetrics = FrechetInceptionDistance(SmallAntialiased()).eval()
    by_torchmetrics.update(a, real=True)
    by_torchmetrics.update(b, real=False)
    return {
        "fid_clean": cleanfid.compute_fid(
            str(folder / "a"),
            str(folder / "b"),
            mode="clean",
            custom_feat_extractor=Small().eval(),
            num_workers=0,
            device="cpu",
            verbose=False,
        ),
        "fid_tf1": by_torch_fidelity["frechet_inception_distance"],
        "fid_torchmetrics": by_torchmetrics.compute().item(),
    }


def distances_of_features(few: np.ndarray, other: np.ndarray) -> dict[str, float]:
    """The distance of features that are given, once with fewer samples than dimensions."""
    statistics = [fid_features_to_statistics(torch.from_numpy(x)) for x in (few, other)]
    return {
        "few_cleanfid": cleanfid.fid_from_feats(few, other),
        "few_torch_fidelity": fid_statistics_to_metric(*statistics, verbose=False)["frechet_inception_distance"],
    }


def resizes(pictures: Tensor) -> dict[str, np.ndarray]:
    """Pictures (n, 3, h, w) resized to 299, channels first."""
    clean = build_resizer("clean")
    return {
        "clean": np.stack([clean(picture.permute(1, 2, 0).numpy()) for picture in pictures]).transpose(0, 3, 1, 2),
        "tf1": interpolate_bilinear_2d_like_tensorflow1x(pictures.float(), SIZE, align_corners=False).numpy(),
    }


def inceptions(folder: Path, pictures: Tensor) -> dict[str, np.ndarray]:
    """What the first layer receives and the last ones give, in torch-fidelity, torchmetrics and clean-fid."""
    weights, layers = folder / "weights-inception-2015-12-05-6726825d.pth", ["2048", "logits_unbiased"]
    seen: dict[str, Tensor] = {}
    network = FeatureExtractorInceptionV3("inception", layers, feature_extractor_weights_path=str(weights))
    network.Conv2d_1a_3x3.register_forward_pre_hook(lambda module, args: seen.update(input_tf1=args[0]))
    network.Mixed_6d.branch1x1.register_forward_hook(lambda module, args, output: seen.update(spatial=output))
    pooled, logits = network(pictures)
    antialiased = NoTrainInceptionV3("inception", ["2048"], str(weights))
    antialiased.Conv2d_1a_3x3.register_forward_pre_hook(lambda module, args: seen.update(input_torchmetrics=args[0]))
    torch.hub.set_dir(folder)  # clean-fid loads pytorch-fid's state dict from there
    legacy = InceptionV3(output_blocks=[3], resize_input=False, normalize_input=False).eval()
    script = InceptionV3W(str(folder), download=False)
    x = torch.from_numpy(resizes(pictures)["clean"])
    results = {
        "pooled_torchscript": script(x),
        "probabilities_torchscript": script.base(x, no_output_bias=True),
        "pooled": pooled,
        "logits": logits,
        "spatial": seen["spatial"][:, :7].permute(0, 2, 3, 1).flatten(1),
        "pooled_torchmetrics": antialiased(pictures),
        "pooled_pytorch_fid": legacy(seen["input_tf1"])[0].flatten(1),
    }
    return {name: tensor.numpy() for name, tensor in (seen | results).items()}


@torch.inference_mode()
def main(folder: Path) -> None:
    with np.load(folder / "inputs.npz") as inputs:
        a, b, wide, large = (torch.from_numpy(inputs[name]) for name in ("a", "b", "wide", "large"))
        few, other = inputs["few"], inputs["other"]
    results: dict[str, object] = distances(folder, a, b) | distances_of_features(few, other)
    for name, pictures in (("wide", wide), ("large", large)):
        results |= {f"{mode}_{name}": resized for mode, resized in resizes(pictures).items()}
    np.savez(folder / "results.npz", **results, **inceptions(folder, wide))


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]))
