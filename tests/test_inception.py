"""Are the files of Inception found, told apart and refused rightly? What they compute is in ``test_references.py``."""

import hashlib
from pathlib import Path

import pytest
import torch
from torch import Tensor

from diffaccel.metrics.extractor import load_extractor
from diffaccel.metrics.inception import SOURCES, MissingWeights, fetch, find, load_inception, places
from diffaccel.metrics.inception_network import HIGH, LOW, Inception
from tests.small_extractor import small_torchscript

State = dict[str, Tensor]
TORCHSCRIPT_IS_LEAVING = pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")


@pytest.fixture(scope="module")
def state() -> State:
    torch.manual_seed(0)
    return Inception().state_dict()


@pytest.fixture
def usual_places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Torch's cache and the temporary folder, both empty."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    return tmp_path


def test_network_gives_all_features_of_any_batch(state: State) -> None:
    network = Inception().eval()
    network.load_state_dict(state)
    with torch.no_grad():
        features = network(torch.rand(3, 3, 299, 299) * (HIGH - LOW) + LOW)
    assert [tensor.shape[1] for tensor in features] == [2048, 17 * 17 * 7, 1008]
    assert {len(tensor) for tensor in features} == {3}
    assert features.spatial.min() == 0  # after ReLU


def test_both_state_dicts_are_the_same_network(state: State, tmp_path: Path) -> None:
    """pytorch-fid's has no counters and may hold the auxiliary classifier that nothing uses."""
    bare = {name: weight for name, weight in state.items() if not name.endswith("num_batches_tracked")}
    torch.save(state, tmp_path / "a.bin")
    torch.save(bare | {"AuxLogits.fc.weight": torch.zeros(1008, 768)}, tmp_path / "b.bin")
    first, second = (load_extractor("inception", weights=tmp_path / name).identity for name in ("a.bin", "b.bin"))
    assert first == second
    torch.save(state | {"fc.bias": state["fc.bias"] + 1}, tmp_path / "c.bin")
    assert load_extractor("inception", weights=tmp_path / "c.bin").identity.difference(first).startswith("weights ")


def test_weights_that_are_nowhere(usual_places: Path) -> None:
    assert find() is None
    with pytest.raises(MissingWeights) as caught:
        load_extractor("inception")
    for name, place in places().items():
        assert f"{SOURCES[name]}/{name}\n  to {place}" in str(caught.value)
        assert place.is_relative_to(usual_places)
    assert isinstance(caught.value, OSError)
    with pytest.raises(MissingWeights, match="there is no file nowhere"):
        load_extractor("inception", weights=Path("nowhere"), download=True)


@TORCHSCRIPT_IS_LEAVING
def test_file_in_its_usual_place_is_found_the_best_first(usual_places: Path, state: State) -> None:
    script, cached = places()["inception-2015-12-05.pt"], places()["weights-inception-2015-12-05-6726825d.pth"]
    for file in (script, cached):
        file.parent.mkdir(parents=True)
    small_torchscript(str(script))
    assert find() == script
    assert type(load_inception()).__name__ == "TorchScriptInception"
    torch.save(state, cached)
    assert find() == cached
    assert torch.equal(load_inception().state_dict()["fc.weight"], state["fc.weight"])


def test_download_is_checked_before_it_is_in_place(tmp_path: Path) -> None:
    content = tmp_path / "published"
    content.write_bytes(b"weights")
    good = tmp_path / "cache" / f"weights-{hashlib.sha256(b'weights').hexdigest()[:8]}.pth"
    fetch(content.as_uri(), good)
    assert good.read_bytes() == b"weights"
    bad = good.with_name("weights-00000000.pth")
    with pytest.raises(OSError, match=r"is not weights-00000000\.pth"):
        fetch(content.as_uri(), bad)
    with pytest.raises(OSError, match="No such file"):
        fetch((tmp_path / "gone").as_uri(), bad)
    assert list(good.parent.iterdir()) == [good]


def test_other_networks_are_refused(state: State, tmp_path: Path) -> None:
    file = tmp_path / "weights.pth"
    torch.save(state | {"fc.weight": torch.zeros(1000, 2048), "fc.bias": torch.zeros(1000)}, file)
    with pytest.raises(ValueError, match=r"fc.bias is \(1000,\), expected \(1008,\) \(torchvision's"):
        load_inception(file)
    torch.save({"layer.weight": torch.zeros(2)}, file)
    with pytest.raises(ValueError, match=r"it lacks Conv2d_1a_3x3.bn.bias and \d+ more"):
        load_inception(file)
    torch.save(torch.zeros(2), file)
    with pytest.raises(ValueError, match="it is a Tensor, not a state dict"):
        load_inception(file)


class _Elsewhere(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(1))

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


@TORCHSCRIPT_IS_LEAVING
def test_other_torchscript_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "script.pt"
    torch.jit.script(_Elsewhere()).save(str(file))
    with pytest.raises(ValueError, match=r"script.pt gives 3 features, Inception 2048"):
        load_inception(file)
    torch.jit.script(torch.nn.Linear(2, 2)).save(str(file))
    with pytest.raises(ValueError, match="not clean-fid's Inception, or damaged"):
        load_inception(file)


class _Harmful:
    def __reduce__(self) -> tuple[object, ...]:
        return (Path.touch, (Path("harm"),))


def test_damaged_and_harmful_files_are_refused(state: State, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save(state, "whole.pth")
    whole = Path("whole.pth").read_bytes()
    for damaged in (whole[:1_000_000], b"", b"<html>not found</html>", b"PK\x03\x04"):
        Path("damaged.pth").write_bytes(damaged)
        with pytest.raises(ValueError, match=r"damaged.pth cannot be read as weights, it may be damaged"):
            load_inception("damaged.pth")
    torch.save({"fc.weight": _Harmful()}, "harmful.pth")
    with pytest.raises(ValueError, match="cannot be read as weights"):
        load_inception("harmful.pth")
    assert not Path("harm").exists()
