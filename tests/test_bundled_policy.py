"""Do the bundled policies load as they were trained, without a simulator, and does their export ship them so?"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
from diffusers import DDPMScheduler
from safetensors.torch import load_file

from diffaccel.metrics.bootstrap import share_interval
from diffaccel.pipelines import bundled
from diffaccel.pipelines.bundled.metaworld.card import card
from diffaccel.pipelines.bundled.metaworld.demonstrations import Windows
from diffaccel.pipelines.bundled.metaworld.environment import World
from diffaccel.pipelines.bundled.metaworld.export import SHIPPED, export
from diffaccel.pipelines.bundled.metaworld.train import EXECUTED, HISTORY, HORIZON, build_network
from diffaccel.pipelines.policies.checkpoints import published_scheduler
from diffaccel.pipelines.policies.normalizer import LinearNormalizer
from diffaccel.pipelines.policies.transformer import TransformerForDiffusion
from diffaccel.pipelines.policy import PolicyPipeline


@pytest.mark.parametrize("task", bundled.POLICIES)
def test_policy_is_the_real_class_in_float32_and_acts_within_reach(task: str) -> None:
    pipe, seen = bundled.policy(task), bundled.policy_observations(task)
    assert isinstance(pipe, PolicyPipeline)
    assert isinstance(pipe.denoiser, TransformerForDiffusion)
    assert isinstance(pipe.scheduler, DDPMScheduler)
    assert not pipe.denoiser.training
    assert {weight.dtype for weight in pipe.denoiser.parameters()} == {torch.float32}
    assert pipe.scheduler.config.num_train_timesteps == 100
    assert seen.shape == (64, HISTORY, 39)
    actions = pipe(seen[:4], 10, torch.Generator().manual_seed(0)).actions
    assert actions.shape == (4, EXECUTED, 4)
    assert actions.abs().max() < 1.05


@pytest.mark.parametrize("task", bundled.POLICIES)
def test_observations_span_the_range_the_policy_was_trained_on(task: str) -> None:
    seen = bundled.policy(task).normalizer.observation(bundled.policy_observations(task))
    assert seen.abs().max() <= 1.001
    moving = seen.flatten(0, 1).std(dim=0) > 0
    assert moving.sum() > 10
    hand = seen[..., :3].flatten(0, 1)
    assert (hand.amax(0) - hand.amin(0) > 0.5).all()  # of 2: all phases of the task, not one


@pytest.mark.parametrize("task", bundled.POLICIES)
def test_files_hold_float16_but_for_the_normalizer_and_no_place_of_the_training(task: str) -> None:
    folder = bundled.policy_path(task)
    kinds = {
        part: {tensor.dtype for tensor in load_file(folder / part / "diffusion_pytorch_model.safetensors").values()}
        for part in ("denoiser", "normalizer")
    }
    assert kinds == {"denoiser": {torch.float16}, "normalizer": {torch.float32}}
    assert sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) < 5e6
    for file in folder.rglob("*.json"):
        assert "_name_or_path" not in json.loads(file.read_text())


@pytest.mark.parametrize("task", bundled.POLICIES)
def test_card_tells_a_success_of_at_least_eight_in_ten(task: str) -> None:
    lines = (bundled.policy_path(task) / "README.md").read_text().splitlines()
    [line] = [line for line in lines if line.startswith("| DDPM, 100 steps")]
    episodes, success = (column.split()[0] for column in line.strip("|").split("|")[1:])
    assert int(episodes) >= 100
    assert float(success) >= 0.8


def test_unknown_task_is_refused_by_name() -> None:
    for ask in (bundled.policy, bundled.policy_path, bundled.policy_observations):
        with pytest.raises(ValueError, match=r"no bundled policy for 'push'; choose from drawer-open, pick-place"):
            ask("push")


def test_policy_needs_no_simulator_and_a_world_says_how_to_get_one(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("metaworld", "metaworld.env_dict", "metaworld.policies", "mujoco"):
        monkeypatch.setitem(sys.modules, name, None)  # importing it fails
    assert bundled.policy("drawer-open")(bundled.policy_observations("drawer-open")[:1], 1).actions.shape == (1, 8, 4)
    with pytest.raises(ImportError, match=r"simulated worlds need metaworld: pip install 'diffaccel\[policy\]'"):
        World("drawer-open")


@pytest.fixture
def trained(tmp_path: Path) -> Path:
    """The folder of a training that has ended at once."""
    output = tmp_path / "training"
    windows = Windows(torch.rand(70, HISTORY, 39), 2 * torch.rand(70, HORIZON, 4) - 1, 2)
    normalizer = LinearNormalizer.of(windows.observations.flatten(0, 1), windows.actions.flatten(0, 1))
    pipe = PolicyPipeline(build_network(), published_scheduler(), normalizer, HORIZON, HISTORY, EXECUTED)
    pipe.save_pretrained(output / "policy")
    torch.save((windows.observations, windows.actions, windows.episodes), output / "demonstrations.pt")
    torch.save({"history": [{"samples": 1234.0, "seconds": 180.0}]}, output / "state.pt")
    return output


def test_export_ships_what_was_trained(trained: Path, tmp_path: Path) -> None:
    folder = export("drawer-open", trained, tmp_path / "shipped", episodes=0)
    assert folder.name == bundled.policy_path("drawer-open").name
    pipe = PolicyPipeline.from_pretrained(trained / "policy", local_files_only=True)
    shipped = bundled.policy("drawer-open", folder)
    for name, weight in pipe.denoiser.state_dict().items():
        assert torch.equal(shipped.denoiser.state_dict()[name], weight.half().float())
    for name, weight in pipe.normalizer.state_dict().items():
        assert torch.equal(shipped.normalizer.state_dict()[name], weight)
    seen = bundled.policy_observations("drawer-open", folder)
    known = torch.load(trained / "demonstrations.pt", weights_only=True)[0]
    rows = (seen[:, None] == known[None]).flatten(2).all(dim=2)
    assert rows.sum(dim=1).tolist() == [1] * SHIPPED
    assert "1,234 samples" in (text := (folder / "README.md").read_text())
    assert "2 demonstrations (70 windows)" in text
    assert str(tmp_path) not in "".join(file.read_text() for file in folder.rglob("*.json"))


def test_export_of_a_training_that_has_not_ended_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="let the training command end"):
        export("drawer-open", tmp_path, tmp_path / "shipped")


def test_card_shows_success_with_its_interval() -> None:
    windows = Windows(torch.zeros(1, 2, 39), torch.zeros(1, 16, 4), 1)
    measured = {"DDPM, 100 steps": share_interval([True] * 9 + [False])}
    text = card("drawer-open", bundled.policy("drawer-open"), windows, 64, {"samples": 1.0, "seconds": 1.0}, measured)
    assert "| DDPM, 100 steps | 10 | 0.90 (0.60-0.98) |" in text
    assert "1,728,132 parameters" in text
