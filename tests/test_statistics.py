"""Do statistics survive their file, are files of others read, and are references of another extractor refused?"""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from diffaccel.metrics import statistics
from diffaccel.metrics.extractor import Features, Identity
from diffaccel.metrics.fid import gaussian
from diffaccel.metrics.statistics import Statistics

IDENTITY = Identity("small", 4, 32, "clean", -1.0, 1.0, "0" * 64)


def features(n: int = 50, spatial: int | None = None) -> Features:
    return Features(torch.randn(n, 4), None if spatial is None else torch.randn(n, spatial))


def test_file_gives_back_every_bit(tmp_path: Path) -> None:
    saved = statistics.of(features(spatial=6), IDENTITY)
    saved.save(tmp_path / "new" / "reference.npz")
    loaded = statistics.load(tmp_path / "new" / "reference.npz")
    assert (loaded.n, loaded.identity) == (50, IDENTITY)
    for name in ("mu", "sigma", "spatial_mu", "spatial_sigma", "features"):
        assert torch.equal(getattr(loaded, name), getattr(saved, name))
    assert [file.name for file in tmp_path.rglob("*")] == ["new", "reference.npz"]


def test_file_without_optional_parts(tmp_path: Path) -> None:
    saved = Statistics(torch.zeros(3), torch.eye(3))
    saved.save(tmp_path / "bare.npz")
    loaded = statistics.load(tmp_path / "bare.npz")
    assert (loaded.n, loaded.features, loaded.spatial_mu, loaded.spatial_sigma, loaded.identity) == (None,) * 5
    assert torch.equal(loaded.sigma, torch.eye(3, dtype=torch.float64))


def test_failed_save_leaves_nothing_behind(tmp_path: Path) -> None:
    file = tmp_path / "reference.npz"
    file.mkdir()  # what was written cannot take its place
    with pytest.raises(OSError, match=r"reference\.npz"):
        statistics.of(features(), IDENTITY).save(file)
    assert list(tmp_path.rglob("*")) == [file]


def test_statistics_are_those_of_all_features_though_only_some_are_kept() -> None:
    all_of_them = features(1000)
    kept = statistics.of(all_of_them, IDENTITY, keep=10)
    mu, sigma = gaussian(all_of_them.pooled)
    assert torch.equal(kept.mu, mu)
    assert torch.equal(kept.sigma, sigma)
    assert torch.equal(kept.features, all_of_them.pooled[::100])
    assert statistics.of(all_of_them, IDENTITY, keep=0).features is None
    assert len(statistics.of(all_of_them, IDENTITY, keep=999).features.unique(dim=0)) == 999


def test_files_of_pytorch_fid_and_adm_are_read(tmp_path: Path) -> None:
    mu, sigma = np.arange(4.0), np.eye(4)
    np.savez(tmp_path / "pytorch_fid.npz", mu=mu, sigma=sigma)
    assert statistics.load(tmp_path / "pytorch_fid.npz").mu.tolist() == [0, 1, 2, 3]
    # The evaluator's reference batches hold the pictures too; float32 here, and not opened.
    adm = {
        "mu_s": np.ones(5, np.float32),
        "sigma_s": np.eye(5, dtype=np.float32),
        "arr_0": np.zeros((2, 8, 8, 3), np.uint8),
    }
    np.savez_compressed(tmp_path / "adm.npz", mu=mu.astype(np.float32), sigma=sigma, **adm)
    loaded = statistics.load(tmp_path / "adm.npz")
    assert loaded.mu.dtype == loaded.spatial_mu.dtype == torch.float64
    assert loaded.spatial_sigma.shape == (5, 5)
    assert (loaded.n, loaded.identity, loaded.features) == (None, None, None)


def test_our_files_are_read_as_clean_fid_reads_its_own(tmp_path: Path) -> None:
    saved = statistics.of(features(), IDENTITY)
    saved.save(tmp_path / "reference.npz")
    stats = np.load(tmp_path / "reference.npz")
    assert np.array_equal(stats["mu"], saved.mu)
    assert np.array_equal(stats["sigma"], saved.sigma)


def test_missing_file() -> None:
    with pytest.raises(FileNotFoundError, match=r"no statistics file nowhere\.npz"):
        statistics.load("nowhere.npz")


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"arr_0": np.zeros((2, 8, 8, 3), np.uint8)}, "it holds arr_0 .*make statistics of them first"),
        ({"mu": np.zeros(4)}, "must hold mu and sigma, .*; it holds mu"),
        ({"mu": np.zeros(4), "sigma": np.eye(4), "mu_s": np.zeros(2)}, "mu_s with sigma_s"),
        ({"mu": np.zeros(4), "sigma": np.eye(3)}, r"\(d,\) and \(d, d\), got \(4,\) and \(3, 3\)"),
        ({"mu": np.zeros(4), "sigma": np.array([None])}, "is no statistics file, or damaged"),
        ({"mu": np.zeros(4), "sigma": np.eye(4), "identity": np.array("{")}, "its record of the extractor is damaged"),
        ({"mu": np.zeros(4), "sigma": np.eye(4), "identity": np.array(json.dumps({"name": "x"}))}, "got name"),
    ],
)
def test_file_that_holds_no_statistics(arrays: dict[str, np.ndarray], message: str, tmp_path: Path) -> None:
    np.savez(tmp_path / "file.npz", **arrays)
    with pytest.raises(ValueError, match=message):
        statistics.load(tmp_path / "file.npz")


def test_damaged_files(tmp_path: Path) -> None:
    statistics.of(features(500), IDENTITY).save(tmp_path / "whole.npz")
    whole = (tmp_path / "whole.npz").read_bytes()
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 255  # within the features: the archive's checksum sees it
    for damaged in (whole[: len(whole) // 2], b"", b"PK\x03\x04", bytes(flipped)):
        (tmp_path / "damaged.npz").write_bytes(damaged)
        with pytest.raises(ValueError, match=r"damaged.npz is no statistics file, or damaged"):
            statistics.load(tmp_path / "damaged.npz")


def test_reference_of_the_same_extractor_is_taken() -> None:
    statistics.check(statistics.of(features(), IDENTITY), replace(IDENTITY))


@pytest.mark.parametrize("change", [{"resize": "tf1"}, {"low": 0.0}, {"weights": "f" * 64}, {"name": "other"}])
def test_reference_of_another_extractor_is_refused_even_if_trusted(change: dict[str, object]) -> None:
    field, value = next(iter(change.items()))
    message = f"another extractor: {field} {getattr(IDENTITY, field)} and {value}; make"
    with pytest.raises(ValueError, match=message):
        statistics.check(statistics.of(features(), IDENTITY), replace(IDENTITY, **change), trust=True)


def test_reference_without_a_record_needs_trust_and_the_right_dimension() -> None:
    unknown = replace(statistics.of(features(), IDENTITY), identity=None)
    with pytest.raises(ValueError, match=r"If you know that it was small with resize clean, say so with trust=True"):
        statistics.check(unknown, IDENTITY)
    statistics.check(unknown, IDENTITY, trust=True)
    with pytest.raises(ValueError, match="is of dimension 4, features of small of 5"):
        statistics.check(unknown, replace(IDENTITY, dimension=5), trust=True)


def test_of_says_what_is_wrong() -> None:
    with pytest.raises(ValueError, match="features of small have dimension 4, these have 3"):
        statistics.of(Features(torch.randn(5, 3)), IDENTITY)
    with pytest.raises(ValueError, match="keep must be at least 0, got -1"):
        statistics.of(features(), IDENTITY, keep=-1)
