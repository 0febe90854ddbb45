"""Does the bundled CLIP tell captions apart, does its training do what it says, and do the renders' statistics hold?"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import CLIPModel

from diffaccel.metrics import statistics
from diffaccel.metrics.clip import ClipScorer
from diffaccel.metrics.extractor import as_bytes, load_extractor
from diffaccel.metrics.fid import frechet_distance
from diffaccel.pipelines import bundled
from diffaccel.pipelines.bundled.digits.captions import Scene, scenes
from diffaccel.pipelines.bundled.digits.checker import held_out_renders
from diffaccel.pipelines.bundled.digits.clip import (
    contrastive_loss,
    gates,
    is_train,
    neighbours,
    train_clip,
    variants,
)
from diffaccel.pipelines.bundled.digits.data import scene_table
from diffaccel.pipelines.bundled.digits.renders import render_statistics


def test_shipped_clip_finds_captions_as_often_as_its_card_says() -> None:
    model = CLIPModel.from_pretrained(bundled.clip_path()).float().eval()
    recorded = json.loads((bundled.clip_path() / "gates.json").read_text())
    assert recorded["n"] >= 2000
    found = gates(model, 400, seed=7)
    for name in ("exact", "one attribute"):
        assert found[name] == pytest.approx(recorded[name], abs=0.05)
        assert recorded[name] > 0.85


def test_score_falls_with_every_wrong_word() -> None:
    scorer = ClipScorer(bundled.clip_path())
    assert scorer.identity["name"] == "clip_digits"
    images, expected = held_out_renders(24, seed=11)
    pictures = (images + 1).clamp(0, 2) / 2
    right = scorer.scores(pictures, [scene.caption for scene in expected])
    wrong = scorer.scores(pictures, [neighbours(scene)[0].caption for scene in expected])
    other = scorer.scores(pictures, [scene.caption for scene in expected[1:] + expected[:1]])
    assert right.mean() > wrong.mean() + 5
    assert wrong.mean() > other.mean() + 5


def test_split_of_indices_is_that_of_scenes() -> None:
    every = scenes()
    assert is_train(scene_table(every)).tolist() == [scene.split == "train" for scene in every]


def test_variants_differ_in_at_most_one_attribute_and_are_trained_on() -> None:
    table = scene_table(scenes("train"))
    table = table[torch.randint(len(table), (4000,))]
    changed = variants(table)
    assert is_train(changed).all()
    own = [Scene.of(*row) for row in table.tolist()]
    other = [Scene.of(*row) for row in changed.tolist()]
    assert scene_table(other).tolist() == changed.tolist(), "a single item has no second"
    single_to_pair = [bool(a.layout) != bool(b.layout) for a, b in zip(own, other, strict=True)]
    differ = (table != changed).sum(1)
    assert max(n for n, jump in zip(differ.tolist(), single_to_pair, strict=True) if not jump) == 1
    assert (differ > 0).float().mean() > 0.5


@pytest.mark.parametrize(
    ("caption", "count"),
    [
        ("a red 7 on a white background", 9 + 5 + 3),
        ("a red 7 left of a blue 2 on a white background", 1 + 2 * (9 + 5) + 3),
    ],
)
def test_neighbours_are_all_scenes_one_attribute_away(caption: str, count: int) -> None:
    scene = Scene.parse(caption)
    near = neighbours(scene)
    assert len(set(near)) == len(near) == count
    assert all(sum(a != b for a, b in zip(scene.indices, other.indices, strict=True)) == 1 for other in near)


def test_loss_is_zero_for_sure_and_right_and_shares_equal_captions() -> None:
    assert contrastive_loss(100 * torch.eye(3), torch.arange(3)).item() == pytest.approx(0, abs=1e-6)
    assert contrastive_loss(torch.zeros(4, 4), torch.zeros(4)).item() == pytest.approx(torch.tensor(4.0).log().item())
    twins = torch.tensor([[9.0, 9.0, -9], [9, 9, -9], [-9, -9, 9]])
    assert contrastive_loss(twins, torch.tensor([5, 5, 6])).item() == pytest.approx(
        2 / 3 * torch.tensor(2.0).log().item(), abs=1e-4
    )


def test_a_training_goes_on_from_its_checkpoint_and_ships_what_it_has(tmp_path: Path) -> None:
    first = train_clip(tmp_path / "clip", minutes=0.1, keep_every=0)
    kept = torch.load(tmp_path / "clip.checkpoint.pt", weights_only=True)
    assert kept["spent"] > 0
    again = train_clip(tmp_path / "clip", minutes=0)  # which is over already
    for name, weight in again.state_dict().items():
        torch.testing.assert_close(weight, first.state_dict()[name], atol=0, rtol=0)
    shipped = CLIPModel.from_pretrained(tmp_path / "clip").float()
    assert torch.equal(shipped.logit_scale, first.logit_scale)
    ClipScorer(tmp_path / "clip")


def test_shipped_statistics_are_those_of_renders_in_the_checkers_features() -> None:
    shipped, extractor = statistics.load(bundled.renders_path()), load_extractor("fd_digits")
    statistics.check(shipped, extractor.identity)
    fresh = render_statistics(1500, keep=0, seed=12)
    near = frechet_distance(shipped.mu, shipped.sigma, fresh.mu, fresh.sigma)
    noise = statistics.of(extractor(as_bytes(torch.rand(1500, 3, 32, 32))), extractor.identity, keep=0)
    assert near < 0.02 * frechet_distance(shipped.mu, shipped.sigma, noise.mu, noise.sigma)
    assert shipped.features is not None
    assert (shipped.n, len(shipped.features)) == (20_000, 1000)
