"""Do our features and distances equal those of clean-fid, torch-fidelity and torchmetrics?"""

import sys
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from diffaccel.metrics import statistics
from diffaccel.metrics.extractor import Features, load_extractor
from diffaccel.metrics.fid import frechet_distance, gaussian
from diffaccel.metrics.inception_network import HIGH, LOW, SIDE, Inception
from diffaccel.metrics.resize import resize
from tests import references
from tests.small_extractor import small_torchscript

Numbers = Mapping[str, np.ndarray]
TORCH_FIDELITY = "weights-inception-2015-12-05-6726825d.pth"
CLEAN_FID = "inception-2015-12-05.pt"
PYTORCH_FID = "checkpoints/pt_inception-2015-12-05-6726825d.pth"


def pictures(n: int, height: int, width: int, seed: int, contrast: float = 1.0) -> Tensor:
    """Random pictures with structure at several scales, so that resizing them matters."""
    generator = torch.Generator().manual_seed(seed)
    noise = sum(
        nn.functional.interpolate(torch.randn(n, 3, side, side, generator=generator), (height, width), mode="bicubic")
        for side in (3, 11, 40)
    )
    return ((0.5 + 0.2 * contrast * noise).clamp(0, 1) * 255).round().to(torch.uint8)


def random_inception() -> dict[str, Tensor]:
    """Random weights under which no layer's output vanishes or explodes."""
    torch.manual_seed(5)
    network = Inception()
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight)
        elif isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, std=0.1)
            for tensor in (module.running_var, module.weight):
                nn.init.uniform_(tensor, 0.8, 1.2)
            nn.init.normal_(module.bias, std=0.1)
    return network.state_dict()


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what both sides read, and the results of the reference implementations."""
    if reason := references.missing():
        pytest.skip(reason)
    folder = tmp_path_factory.mktemp("references")
    a, b = pictures(60, 48, 64, seed=0), pictures(50, 48, 64, seed=1, contrast=0.7)
    for name, batch in (("a", a), ("b", b)):
        (folder / name).mkdir()
        for number, picture in enumerate(batch):
            Image.fromarray(picture.permute(1, 2, 0).numpy()).save(folder / name / f"{number:03}.png")
    generator = np.random.default_rng(0)
    np.savez(
        folder / "inputs.npz",
        a=a.numpy(),
        b=b.numpy(),
        wide=pictures(2, 61, 97, seed=2).numpy(),
        large=pictures(2, 420, 350, seed=3).numpy(),
        few=generator.normal(size=(20, 32)) * np.logspace(-1, 1, 32),
        other=generator.normal(size=(100, 32)) + 0.3,
    )
    weights = random_inception()
    (folder / PYTORCH_FID).parent.mkdir()
    torch.save(weights, folder / TORCH_FIDELITY)
    without_counters = {name: weight for name, weight in weights.items() if not name.endswith("num_batches_tracked")}
    torch.save(without_counters, folder / PYTORCH_FID)
    small_torchscript(str(folder / CLEAN_FID))
    references.run(Path(__file__).with_name("reference_fid.py"), folder)
    return folder


@pytest.fixture(scope="session")
def inputs(folder: Path) -> Numbers:
    with np.load(folder / "inputs.npz") as file:
        return dict(file)


@pytest.fixture(scope="session")
def expected(folder: Path) -> Numbers:
    with np.load(folder / "results.npz") as file:
        return dict(file)


@pytest.mark.parametrize("mode", ["clean", "tf1", "torchmetrics"])
def test_distance_of_two_sets_of_pictures(mode: str, inputs: Numbers, expected: Numbers) -> None:
    extractor = load_extractor("tests.small_extractor:Small", resize=mode)
    a, b = (statistics.of(extractor(torch.from_numpy(inputs[name])), extractor.identity) for name in ("a", "b"))
    assert frechet_distance(a.mu, a.sigma, b.mu, b.sigma) == pytest.approx(float(expected[f"fid_{mode}"]), rel=1e-4)


def test_the_three_resizes_give_different_distances(expected: Numbers) -> None:
    distances = sorted(float(expected[f"fid_{mode}"]) for mode in ("clean", "tf1", "torchmetrics"))
    assert all(high / low > 1.01 for low, high in pairwise(distances))


@pytest.mark.parametrize("implementation", ["cleanfid", "torch_fidelity"])
def test_distance_with_fewer_samples_than_dimensions(implementation: str, inputs: Numbers, expected: Numbers) -> None:
    few, other = (gaussian(torch.from_numpy(inputs[name])) for name in ("few", "other"))
    assert frechet_distance(*few, *other) == pytest.approx(float(expected[f"few_{implementation}"]), rel=1e-5)
    assert frechet_distance(*other, *few) == pytest.approx(float(expected[f"few_{implementation}"]), rel=1e-5)


@pytest.mark.parametrize("name", ["wide", "large"])
@pytest.mark.parametrize("mode", ["clean", "tf1"])
def test_resized_pictures_are_the_same_bit_by_bit(mode: str, name: str, inputs: Numbers, expected: Numbers) -> None:
    assert np.array_equal(resize(torch.from_numpy(inputs[name]), 299, mode).numpy(), expected[f"{mode}_{name}"])


@pytest.mark.parametrize("mode", ["tf1", "torchmetrics"])
def test_inception_receives_the_same_bit_by_bit(mode: str, inputs: Numbers, expected: Numbers) -> None:
    x = resize(torch.from_numpy(inputs["wide"]), SIDE, mode)
    assert np.array_equal((x * ((HIGH - LOW) / 255) + LOW).numpy(), expected[f"input_{mode}"])


@pytest.fixture(scope="session")
def inception_features(folder: Path, inputs: Numbers) -> Features:
    extractor = load_extractor("inception", weights=folder / TORCH_FIDELITY, resize="tf1")
    return extractor(torch.from_numpy(inputs["wide"]))


@pytest.mark.parametrize("kind", ["pooled", "spatial", "logits"])
def test_inception_is_that_of_torch_fidelity(kind: str, expected: Numbers, inception_features: Features) -> None:
    ours = getattr(inception_features, kind).numpy()
    assert ours.shape == expected[kind].shape
    assert expected[kind].std(axis=0).max() > 0.01  # random weights, but features that tell the pictures apart
    assert close(ours, expected[kind])


def test_inception_is_that_of_pytorch_fid(folder: Path, inputs: Numbers, expected: Numbers) -> None:
    extractor = load_extractor("inception", weights=folder / PYTORCH_FID, resize="tf1")
    assert close(extractor(torch.from_numpy(inputs["wide"])).pooled.numpy(), expected["pooled_pytorch_fid"])


def test_inception_is_that_of_torchmetrics(folder: Path, inputs: Numbers, expected: Numbers) -> None:
    extractor = load_extractor("inception", weights=folder / TORCH_FIDELITY, resize="torchmetrics")
    assert close(extractor(torch.from_numpy(inputs["wide"])).pooled.numpy(), expected["pooled_torchmetrics"])
    assert not close(expected["pooled"], expected["pooled_torchmetrics"])


@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")
def test_torchscript_is_read_as_clean_fid_reads_it(folder: Path, inputs: Numbers, expected: Numbers) -> None:
    features = load_extractor("inception", weights=folder / CLEAN_FID)(torch.from_numpy(inputs["wide"]))
    assert features.spatial is None
    assert features.logits is not None
    assert close(features.pooled.numpy(), expected["pooled_torchscript"])
    assert close(features.logits.softmax(1).numpy(), expected["probabilities_torchscript"])


def close(ours: np.ndarray, theirs: np.ndarray) -> bool:
    """Equal but for the order of summation."""
    return bool(np.abs(ours - theirs).max() <= 1e-5 * np.abs(theirs).max())


def test_script_that_fails_says_why(tmp_path: Path, folder: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text("import sys, lpips, torchvision\nraise ValueError(sys.argv)")
    with pytest.raises(RuntimeError, match=r"script\.py failed:(.|\n)*ValueError: \[.*script.py', 'one', 'two'\]"):
        references.run(script, "one", "two")
    assert str(references.FOLDER) not in sys.path
