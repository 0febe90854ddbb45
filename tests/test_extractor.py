"""Do extractors read pictures in the way their record says, and never under a name that belongs to another network?"""

import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from diffaccel.metrics.extractor import (
    KINDS,
    Extractor,
    Features,
    Identity,
    as_bytes,
    fingerprint,
    load_extractor,
)
from diffaccel.pipelines import bundled
from tests.small_extractor import Small

IDENTITY = Identity("net", 3, 8, "none", -1.0, 1.0, "0" * 64)
DTYPES = (torch.float32, torch.int32)
HERE = "tests.test_extractor"


def random_pictures(n: int = 5, side: int = 8) -> Tensor:
    return torch.randint(0, 256, (n, 3, side, side), dtype=torch.uint8)


class Means(nn.Module):
    """The mean of each channel, and the range of what it was given."""

    value_range = (-2.0, 3.0)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x.mean(dim=(2, 3)), x.amin(dim=(1, 2, 3))[:, None], x.amax(dim=(1, 2, 3))[:, None]], dim=1)


class Everything(nn.Module):
    input_size = 4
    dimension = 3

    def forward(self, x: Tensor) -> Features:
        return Features(x.mean(dim=(2, 3), keepdim=True), x[:, 0].flatten(1), x.half()[:, :, 0, 0])


class Untrained(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(3)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x).mean(dim=(2, 3))


INSTANCE = Untrained()
NUMBER = 3


def number() -> int:
    return NUMBER


def flat() -> nn.Module:
    return nn.Flatten(0)


def test_digits_are_the_features_of_the_checker() -> None:
    extractor = load_extractor("fd_digits")
    pictures = random_pictures(7, side=32)
    features = extractor(pictures)
    with torch.no_grad():
        expected = bundled.checker().features(pictures / 127.5 - 1)
    torch.testing.assert_close(features.pooled, expected)
    assert (features.spatial, features.logits) == (None, None)
    assert extractor.identity == Identity("fd_digits", 192, 32, "none", -1, 1, fingerprint(bundled.checker()))
    assert not features.pooled.requires_grad
    assert not features.pooled.is_inference()  # its owner may change it


def test_digits_of_another_size_are_refused_unless_a_resize_is_asked_for() -> None:
    with pytest.raises(ValueError, match="reads pictures of 32 x 32, got 48 x 48"):
        load_extractor("fd_digits")(random_pictures(side=48))
    assert load_extractor("fd_digits", resize="clean")(random_pictures(2, side=48)).pooled.shape == (2, 192)


def test_batches_change_nothing_but_rounding() -> None:
    extractor, pictures = load_extractor("fd_digits"), random_pictures(10, side=32)
    together = extractor.features(pictures, batch=10).pooled
    for batch in (1, 3, 64):
        torch.testing.assert_close(extractor.features(pictures, batch=batch).pooled, together)


def test_progress_goes_to_stderr_and_only_if_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    extractor = load_extractor(f"{HERE}:Means")
    extractor.features(random_pictures())
    assert capsys.readouterr() == ("", "")
    extractor.features(random_pictures(), batch=2, progress=True)
    output = capsys.readouterr()
    assert output.out == ""
    assert "5/5" in output.err


def test_module_of_ones_own_gets_the_range_it_asks_for_at_any_size() -> None:
    extractor = load_extractor(f"{HERE}:Means")
    identity = extractor.identity
    assert (identity.dimension, identity.side, identity.resize, identity.low, identity.high) == (5, None, "none", -2, 3)
    pictures = torch.zeros(1, 3, 5, 9, dtype=torch.uint8)
    pictures[:, :, :, 0] = 255
    features = extractor(pictures).pooled[0].tolist()
    assert features == pytest.approx([-2 + 5 / 9] * 3 + [-2, 3], abs=1e-6)


def test_module_of_ones_own_may_give_all_kinds_of_features() -> None:
    extractor = load_extractor(f"{HERE}:Everything", resize="tf1")
    features = extractor(random_pictures(2))
    assert [tuple(tensor.shape) for tensor in features] == [(2, 3), (2, 16), (2, 3)]
    assert {tensor.dtype for tensor in features} == {torch.float32}


def test_module_of_ones_own_is_put_into_evaluation_mode() -> None:
    INSTANCE.train()
    extractor = load_extractor(f"{HERE}:INSTANCE")
    pictures = random_pictures(4)
    torch.testing.assert_close(extractor(pictures[:1]).pooled, extractor(pictures).pooled[:1])


def test_weights_of_ones_own_are_loaded_and_recorded(tmp_path: Path) -> None:
    other = Small()
    nn.init.ones_(other.scale)
    torch.save(other.state_dict(), tmp_path / "other.pth")
    spec = "tests.small_extractor:Small"
    given, own = load_extractor(spec, weights=tmp_path / "other.pth"), load_extractor(spec)
    assert given.identity == replace(own.identity, weights=fingerprint(other))
    assert given.identity != own.identity
    with pytest.raises(ValueError, match=r"other.pth holds no weights of Means"):
        load_extractor(f"{HERE}:Means", weights=tmp_path / "other.pth")
    with pytest.raises(FileNotFoundError):
        load_extractor(spec, weights=tmp_path / "gone.pth")


def test_module_in_the_current_folder_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_own_net.py").write_text("import torch\nNet = torch.nn.Flatten\n")
    monkeypatch.chdir(tmp_path)
    before = list(sys.path)
    assert load_extractor("my_own_net:Net").identity.dimension == 3 * 64 * 64
    assert sys.path == before


@pytest.mark.parametrize(
    ("spec", "arguments", "error", "message"),
    [
        ("vgg", {}, ValueError, "must be inception, fd_digits or module:attribute, got 'vgg'"),
        (":x", {}, ValueError, "got ':x'"),
        ("not_there:x", {}, ValueError, "cannot import the extractor 'not_there:x' .*: No module named 'not_there'"),
        (f"{HERE}:x", {}, ValueError, "cannot import .*has no attribute 'x'"),
        (f"{HERE}:NUMBER", {}, TypeError, "must be or make an nn.Module, got int"),
        (f"{HERE}:number", {}, TypeError, "must be or make an nn.Module, got int"),
        (f"{HERE}:flat", {}, TypeError, r"features of shape \(n, d\), Flatten does not"),
        (f"{HERE}:Means", {"resize": "clean"}, ValueError, r"does not say which size it reads \(input_size\)"),
        ("fd_digits", {"weights": Path("x")}, ValueError, "takes no others, got x"),
        ("fd_digits", {"resize": "sinc"}, ValueError, "clean, torchmetrics, tf1, none, got 'sinc'"),
        ("inception", {"resize": "sinc"}, ValueError, "clean, torchmetrics, tf1, none, got 'sinc'"),
    ],
)
def test_load_says_what_is_wrong(spec: str, arguments: dict[str, object], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        load_extractor(spec, **arguments)


def test_features_say_what_is_wrong() -> None:
    extractor = Extractor(lambda x: x.mean(dim=(2, 3)), replace(IDENTITY, dimension=4))
    with pytest.raises(ValueError, match=r"net must return features of shape \(5, 4\), got \(5, 3\)"):
        extractor(random_pictures())
    with pytest.raises(TypeError, match="net must return a tensor or Features, got list"):
        Extractor(lambda x: x.tolist(), IDENTITY)(random_pictures())
    with pytest.raises(TypeError, match="must be bytes"):
        extractor(torch.rand(2, 3, 8, 8))
    with pytest.raises(ValueError, match="at least one picture and a batch of 1 are needed, got 0 and 64"):
        extractor(random_pictures(0))
    with pytest.raises(ValueError, match="got 5 and 0"):
        extractor.features(random_pictures(), batch=0)


def test_known_names_belong_to_inception_alone() -> None:
    def labels(name: str) -> list[str]:
        extractor = Extractor(nn.Identity(), replace(IDENTITY, name=name))
        return [extractor.label(kind) for kind in KINDS]

    assert labels("inception") == ["FID", "sFID", "KID", "IS", "precision", "recall"]
    own = labels("fd_digits")
    assert own == ["fd_digits", *(f"{kind}[fd_digits]" for kind in KINDS[1:])]
    assert labels("a:b") == [f"{kind}[a:b]" for kind in KINDS]
    with pytest.raises(ValueError, match="fd, sfd, kd, is, precision, recall, got 'fid'"):
        Extractor(nn.Identity(), IDENTITY).label("fid")


def test_identity_names_what_differs() -> None:
    assert IDENTITY.difference(replace(IDENTITY)) == ""
    other = replace(IDENTITY, resize="tf1", low=0.0)
    assert IDENTITY.difference(other) == "resize none and tf1; low -1.0 and 0.0"
    assert Identity.from_dict(other.as_dict()) == other


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"resize": "sinc"}, "got 'sinc'"),
        ({"side": None, "resize": "tf1"}, "resize must be 'none'"),
        ({"low": 1.0}, "a lower and a higher number, got 1.0 and 1.0"),
    ],
)
def test_identity_says_what_is_wrong(change: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(IDENTITY, **change)


def test_record_with_other_fields_is_refused() -> None:
    record = IDENTITY.as_dict()
    for broken in ({**record, "more": 1}, {key: record[key] for key in ("name", "side")}):
        with pytest.raises(ValueError, match="the record of an extractor has dimension, high, low, name"):
            Identity.from_dict(broken)


def test_fingerprint_sees_numbers_and_names_but_no_counters() -> None:
    norm, same, other = nn.BatchNorm1d(3), nn.BatchNorm1d(3), nn.BatchNorm1d(3)
    same.num_batches_tracked += 5
    with torch.no_grad():
        other.bias[1] = torch.nextafter(other.bias[1], torch.tensor(1.0))
    assert fingerprint(norm) == fingerprint(same)
    assert len({fingerprint(module) for module in (norm, other, nn.Sequential(norm), nn.BatchNorm1d(3).half())}) == 4
    zeros = [nn.ParameterDict({"weight": nn.Parameter(torch.zeros(2).to(t), requires_grad=False)}) for t in DTYPES]
    assert len({fingerprint(module) for module in zeros}) == 2


def test_bytes_are_rounded_as_in_a_picture_file() -> None:
    assert as_bytes(torch.tensor([0.0, 0.4 / 255, 0.6 / 255, 1.0])).tolist() == [0, 0, 1, 255]
    for wrong in (torch.tensor([1.01]), torch.tensor([-0.1]), torch.tensor([torch.nan])):
        with pytest.raises(ValueError, match=r"must lie in 0\.\.1"):
            as_bytes(wrong)
    with pytest.raises(TypeError, match=r"floating point in 0\.\.1, got torch\.uint8"):
        as_bytes(torch.zeros(1, dtype=torch.uint8))


def test_parts_of_one_network_are_joined() -> None:
    part = Features(torch.ones(2, 3), None, torch.ones(2, 5))
    whole = Features.concatenate([part, part])
    assert (whole.pooled.shape, whole.spatial, whole.logits.shape) == ((4, 3), None, (4, 5))
    for parts in ([], [part, part._replace(logits=None)]):
        with pytest.raises(ValueError, match="from one network, of at least one picture"):
            Features.concatenate(parts)
