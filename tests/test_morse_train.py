"""Training a Dot: what is learned, what is left alone, and that a killed training goes on as if it had not been."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DPMSolverMultistepScheduler
from torch import Tensor
from torch.utils.data import Dataset

from diffaccel import accelerate_pipeline
from diffaccel.morse.budget import dash_index
from diffaccel.morse.coordinates import Coordinates
from diffaccel.morse.dot import MorseDot
from diffaccel.morse.probe import only_network
from diffaccel.morse.recipe import DotRecipe
from diffaccel.morse.rows import Rows
from diffaccel.morse.sources import Calls, Drawn, Rolled
from diffaccel.morse.train import train_dot
from tests import tiny

TEXT = (tiny.TEXT_TOKENS, tiny.TEXT_WIDTH)
SD_CALL = {"height": 8, "width": 8, "guidance_scale": 4.0}
FLUX_CALL = {"height": 32, "width": 32, "true_cfg_scale": 3.0}
SHORT: dict[str, Any] = {"iterations": 6, "batch": 4, "learning_rate": 1e-3, "ema": 0.5, "warmup": 0, "progress": False}


class Data(Dataset[Mapping[str, Any]]):
    """Latents with embedded prompts; may be cut off after so many rows were read, as a killed training is."""

    def __init__(self, shape: tuple[int, ...], pooled: bool, count: int = 24, cut: int | None = None) -> None:
        self.shape, self.pooled, self.count, self.cut, self.read = shape, pooled, count, cut, 0

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, i: int) -> dict[str, Tensor]:
        self.read += 1
        if self.cut is not None and self.read > self.cut:
            raise KeyboardInterrupt
        generator = torch.Generator().manual_seed(i)

        def draw(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator)

        item = {"latents": draw(*self.shape), "prompt_embeds": draw(*TEXT), "negative_prompt_embeds": draw(*TEXT)}
        if self.pooled:
            pooled = {name: draw(tiny.TEXT_WIDTH) for name in ("pooled_prompt_embeds", "negative_pooled_prompt_embeds")}
            item |= pooled
        return item


def _sd(**changes: Any) -> tuple[Any, Data, dict[str, Any]]:
    pipe = tiny.stable_diffusion()
    pipe.vae_scale_factor = 1
    return pipe, Data((4, 8, 8), pooled=False, **changes), SD_CALL


def _flux(**changes: Any) -> tuple[Any, Data, dict[str, Any]]:
    return tiny.flux(), Data((16, 16), pooled=True, **changes), FLUX_CALL


def _dot(pipe: Any, **options: Any) -> MorseDot:
    torch.manual_seed(0)
    return MorseDot.of(only_network(pipe), **{"m": 1, "rank": 2, "widths": (8,), **options})


def _weights(dot: MorseDot) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in dot.state_dict().items()}


FAMILIES = {"batched guidance": _sd, "separate guidance": _flux}


@pytest.mark.parametrize("pairs", ["uniform", "plan", "on-policy"])
@pytest.mark.parametrize("family", FAMILIES)
def test_training_explains_more_and_leaves_dash_alone(family: str, pairs: str, tmp_path: Path) -> None:
    pipe, data, call = FAMILIES[family]()
    network = only_network(pipe)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    attributes = {*vars(network), "_diffusers_hook"}  # which a call of the pipeline leaves, trained or not
    flags = [parameter.requires_grad for parameter in network.parameters()]
    dot, settings = _dot(pipe), {**SHORT, "iterations": 30, "learning_rate": 5e-3, "ema": 0.8}
    train_dot(pipe, data, dot, output=tmp_path, call=call, pairs=pairs, plans=[(2, 3)], checkpoint_every=10, **settings)
    for name, value in network.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert all(parameter.grad is None for parameter in network.parameters())
    assert [p.requires_grad for p in network.parameters()] == flags
    assert {*vars(network), "_diffusers_hook"} == attributes
    history = json.loads((tmp_path / "training.json").read_text())["history"]
    assert len(history) == 3  # at the end of a round, which on the pipeline's own runs is several iterations
    assert history[-1]["iteration"] == 30
    assert history[-1]["explained"] > max(0.02, history[0]["explained"])
    assert dot.config.pair_sampling == pairs


def test_a_killed_training_goes_on_as_if_nothing_had_happened(tmp_path: Path) -> None:
    for pairs in ("uniform", "on-policy"):
        results = []
        for name, cut in (("whole", None), ("killed", 18)):
            pipe, data, call = _sd(cut=cut)
            options = {**SHORT, "call": call, "pairs": pairs, "plans": [(1, 2), (2, 1)], "checkpoint_every": 2}
            dot = _dot(pipe)
            try:
                train_dot(pipe, data, dot, output=tmp_path / pairs / name, **options)
            except KeyboardInterrupt:
                pipe, data, call = _sd()
                torch.manual_seed(123)  # nothing may depend on what else happens
                dot = MorseDot.of(only_network(pipe), m=1, rank=2, widths=(8,))
                train_dot(pipe, data, dot, output=tmp_path / pairs / name, **options)
                cut = 0
            assert cut in (None, 0), "the training was not killed"
            results.append((_weights(dot), json.loads((tmp_path / pairs / name / "training.json").read_text())))
        (whole, log), (killed, log_killed) = results
        assert whole.keys() == killed.keys()
        assert all(torch.equal(whole[name], killed[name]) for name in whole)
        assert log == log_killed


def test_what_is_saved_is_the_average_and_loads_into_a_fresh_dot(tmp_path: Path) -> None:
    pipe, data, call = _sd()
    dot = train_dot(pipe, data, _dot(pipe), output=tmp_path, call=call, **SHORT)
    loaded = MorseDot.from_pretrained(tmp_path)
    assert all(torch.equal(value, loaded.state_dict()[name]) for name, value in dot.state_dict().items())
    assert loaded.config.scheduler == "DDIMScheduler"


def test_a_checkpoint_of_other_settings_is_refused(tmp_path: Path) -> None:
    pipe, data, call = _sd()
    train_dot(pipe, data, _dot(pipe), output=tmp_path, call=call, **{**SHORT, "iterations": 2})
    with pytest.raises(ValueError, match=r"learning_rate \(0.001, now 0.01\)"):
        train_dot(
            pipe, data, _dot(pipe), output=tmp_path, call=call, **{**SHORT, "iterations": 2, "learning_rate": 1e-2}
        )


def test_pairs_of_plans_are_of_their_gaps(tmp_path: Path) -> None:
    pipe, data, call = _sd()
    calls, coordinates = Calls(pipe, call, None), Coordinates.of(pipe.scheduler)
    batch = {name: torch.stack([data[i][name] for i in range(16)]) for name in data[0]}
    source = Drawn(calls, coordinates, guided=False, plans=[(2, 4)])
    (pair,) = source(batch, torch.Generator().manual_seed(0))
    pipe.scheduler.set_timesteps(6)
    times, dash = pipe.scheduler.timesteps.tolist(), dash_index(2, 4)
    allowed = {(times[max(s for s in dash if s < i)], times[i]) for i in range(6) if i not in dash}
    found = set(zip(pair.t_s.tolist(), pair.t.tolist(), strict=True))
    assert found <= allowed
    assert len(found) > 1
    assert len(pair.x) == 32  # both branches


def test_a_pair_holds_what_dash_says_and_where_the_jump_leads() -> None:
    pipe, data, call = _sd()
    coordinates = Coordinates.of(pipe.scheduler)
    batch = {name: torch.stack([data[i][name] for i in range(3)]) for name in data[0]}
    (pair,) = Drawn(Calls(pipe, call, None), coordinates, False, None)(batch, torch.Generator().manual_seed(0))
    with torch.no_grad():
        k_s = pipe.unet(pair.x_s, pair.t_s, pair.conditioning["encoder_hidden_states"]).sample
        k = pipe.unet(pair.x, pair.t, pair.conditioning["encoder_hidden_states"]).sample
    torch.testing.assert_close(pair.k_s, k_s)
    torch.testing.assert_close(pair.k, k)
    guided = k_s[:3] + 4.0 * (k_s[3:] - k_s[:3])
    reached = coordinates.jump(guided, pair.x_s[:3], pair.t_s[:3], pair.t[:3])
    torch.testing.assert_close(pair.x[:3], reached, rtol=1e-4, atol=1e-4)
    assert (pair.t_s > pair.t).all()


def test_pairs_on_the_way_are_those_of_the_run(tmp_path: Path) -> None:
    pipe, data, call = _sd()
    pipe.scheduler = DPMSolverMultistepScheduler.from_config(pipe.scheduler.config)
    batch = {name: torch.stack([data[i][name] for i in range(2)]) for name in data[0]}
    found = Rolled(Calls(pipe, call, None), _dot(pipe), [(2, 4)])(batch, torch.Generator().manual_seed(0))
    assert [len(pair.x) for pair in found] == [4] * 4  # four Dot steps of two pictures and two branches
    assert not hasattr(pipe, "acceleration")
    pair = found[0]
    with torch.no_grad():
        k = pipe.unet(pair.x, pair.t, pair.conditioning["encoder_hidden_states"]).sample
    torch.testing.assert_close(pair.k, k)
    torch.testing.assert_close(pair.base, pair.k_s)


def test_rows_come_once_each_and_go_on_where_they_stopped() -> None:
    recipe = DotRecipe(batch=4, seed=3)
    rows = iter(Rows(6, recipe, 0))
    first = [next(rows) for _ in range(6)]
    flat = [row for batch in first for row in batch]
    assert [sorted(flat[i : i + 6]) for i in range(0, 24, 6)] == [list(range(6))] * 4
    assert flat[:6] != flat[6:12]
    later = iter(Rows(6, recipe, 4))
    assert [next(later) for _ in range(2)] == first[4:]


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ({"pairs": "random"}, "uniform, plan, on-policy"),
        ({"loss_norm": "all"}, "none, per_gap, per_bin"),
        ({"mixed_precision": "int4"}, "no, fp16, bf16"),
        ({"iterations": 0}, "iterations"),
        ({"batch": 1.5}, "batch"),
        ({"learning_rate": 0.0}, "learning_rate"),
        ({"ema": 1.0}, "ema"),
        ({"plans": ((0, 3),)}, "plans"),
        ({"guidance": (0.5, 2.0)}, "guidance"),
        ({"warmup": -1}, "warmup"),
    ],
)
def test_settings_out_of_range_are_refused(setting: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        DotRecipe(**setting)


def test_the_rate_rises_stays_and_falls() -> None:
    recipe = DotRecipe(iterations=100, warmup=9, decay=0.5)
    assert [recipe.rate(i) for i in (0, 4, 9, 50, 75, 100)] == pytest.approx([0.1, 0.5, 1.0, 1.0, 0.5, 0.0])


def test_an_empty_dataset_is_refused(tmp_path: Path) -> None:
    pipe, data, call = _sd(count=0)
    with pytest.raises(ValueError, match="empty"):
        train_dot(pipe, data, _dot(pipe), output=tmp_path, call=call, **SHORT)


def test_a_guided_dot_learns_the_guided_estimate_from_the_prompt_s_side() -> None:
    pipe, data, call = _sd()
    coordinates = Coordinates.of(pipe.scheduler)
    batch = {name: torch.stack([data[i][name] for i in range(3)]) for name in data[0]}
    calls = Calls(pipe, call, None)
    (both,) = Drawn(calls, coordinates, False, None)(batch, torch.Generator().manual_seed(0))
    (pair,) = Drawn(calls, coordinates, True, None)(batch, torch.Generator().manual_seed(0))
    assert torch.equal(pair.conditioning["encoder_hidden_states"], batch["prompt_embeds"])
    torch.testing.assert_close(pair.k, both.k[:3] + 4.0 * (both.k[3:] - both.k[:3]))
    assert torch.equal(pair.x, both.x[:3])


def test_a_guided_dot_is_refused_where_branches_are_calls_of_their_own() -> None:
    pipe, data, call = _flux()
    batch = {name: torch.stack([data[i][name] for i in range(2)]) for name in data[0]}
    source = Drawn(Calls(pipe, call, None), Coordinates.of(pipe.scheduler), True, None)
    with pytest.raises(ValueError, match="halves of one batch"):
        source(batch, torch.Generator().manual_seed(0))


def test_precision_is_that_of_each_training_and_weights_stay_in_float32(tmp_path: Path) -> None:
    results = []
    for precision in ("no", "bf16"):
        pipe, data, call = _sd()
        seen = list[torch.dtype]()
        dot = _dot(pipe)
        dot.entry.register_forward_hook(lambda _, __, output, seen=seen: seen.append(output.dtype))
        settings = {**SHORT, "iterations": 2, "mixed_precision": precision}
        train_dot(pipe, data, dot, output=tmp_path / precision, call=call, **settings)
        assert set(seen) == {torch.float32 if precision == "no" else torch.bfloat16}
        results.append(_weights(dot))
    assert all(value.dtype == torch.float32 for value in results[1].values())
    assert any(not torch.equal(value, results[1][name]) for name, value in results[0].items())


def test_a_pipeline_that_is_accelerated_is_not_trained_for(tmp_path: Path) -> None:
    pipe, data, call = _sd()
    dot = _dot(pipe)
    accelerate_pipeline(pipe, "taylorseer")
    with pytest.raises(ValueError, match="already accelerated"):
        train_dot(pipe, data, dot, output=tmp_path, call=call, **SHORT)


def test_a_dot_that_corrects_a_line_is_trained_on_whole_runs(tmp_path: Path) -> None:
    pipe, data, call = _sd()
    with pytest.raises(ValueError, match="on-policy"):
        train_dot(pipe, data, _dot(pipe, base="taylor"), output=tmp_path, call=call, **SHORT)
    settings = {**SHORT, "iterations": 2}
    train_dot(pipe, data, _dot(pipe, base="taylor"), output=tmp_path, call=call, pairs="on-policy", **settings)
    assert MorseDot.from_pretrained(tmp_path).config.base == "taylor"
