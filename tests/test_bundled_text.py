"""Is the bundled language model what its card says, and does its export ship what was trained?"""

from __future__ import annotations

import json
from math import exp, sqrt
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import LlamaForCausalLM

from diffaccel import accelerate_pipeline
from diffaccel.dlm.prompts import MASKED
from diffaccel.pipelines import bundled
from diffaccel.pipelines.bundled.digits.denoiser import Recipe
from diffaccel.pipelines.bundled.language.card import card
from diffaccel.pipelines.bundled.language.evaluate import SHARES, STEPS, answered, filled, measure, passages
from diffaccel.pipelines.bundled.language.export import PLACE, export
from diffaccel.pipelines.bundled.language.model import build
from diffaccel.pipelines.bundled.language.problems import ANSWER, KINDS, Problem
from diffaccel.pipelines.bundled.language.train import LanguageTrainer, exact
from diffaccel.pipelines.text import TextDiffusionPipeline


@pytest.fixture(scope="module")
def pipe() -> TextDiffusionPipeline:
    made = bundled.text()
    made.set_progress_bar_config(disable=True)
    return made


def test_model_is_a_llama_in_float32_whose_positions_all_see_each_other(pipe: TextDiffusionPipeline) -> None:
    assert isinstance(pipe.model, LlamaForCausalLM)
    assert not pipe.model.training
    assert {weight.dtype for weight in pipe.model.parameters()} == {torch.float32}
    assert pipe.config.gen_length == ANSWER
    tokens = torch.tensor([[5, 6, 7], [5, 6, 8]])
    first, second = pipe.model(tokens, use_cache=False).logits
    assert not torch.equal(first[0], second[0])
    assert next(bundled.text(dtype=torch.bfloat16).model.parameters()).dtype == torch.bfloat16


def test_files_hold_float16_and_no_place_of_the_training() -> None:
    folder = bundled.text_path()
    assert folder == PLACE
    assert {weight.dtype for weight in load_file(folder / "model" / "model.safetensors").values()} == {torch.float16}
    assert sum(file.stat().st_size for file in folder.rglob("*")) < 4e6
    for file in folder.rglob("*.json"):
        assert "name_or_path" not in file.read_text()
    for file in folder.rglob("*"):
        assert file.is_dir() or file.stat().st_mode & 0o044 == 0o044, f"{file} cannot be read by everybody"


def test_prompts_are_of_all_kinds_in_turn() -> None:
    prompts = bundled.text_prompts(8)
    starts = {kind: bundled.text_problems(kind, 1)[0].prompt.split()[0] for kind in KINDS}
    assert [prompt.split()[0] for prompt in prompts] == [list(starts.values())[i % len(KINDS)] for i in range(8)]
    assert len(set(prompts)) == 8
    assert not set(prompts) & set(bundled.text_prompts(60, "train"))
    assert bundled.text_prompts(3) == prompts[:3]


def test_unknown_names_are_refused() -> None:
    for ask in (bundled.text, bundled.text_path):
        with pytest.raises(ValueError, match="no bundled language model is called 'llada'; choose from text-problems"):
            ask("llada")


def test_a_text_is_the_same_whatever_is_decoded_beside_it(pipe: TextDiffusionPipeline) -> None:
    prompts = bundled.text_prompts(6)
    together = pipe(prompts).texts
    assert [pipe(prompt).texts[0] for prompt in prompts] == together
    assert not any(MASKED in text for text in together)


def test_self_speculation_writes_the_same_in_fewer_forwards(pipe: TextDiffusionPipeline) -> None:
    prompts = bundled.text_prompts(6)
    plain = pipe(prompts)
    accelerate_pipeline(pipe, "ssd")
    try:
        fast = pipe(prompts)
    finally:
        pipe.acceleration.remove()
    assert fast.texts == plain.texts
    assert fast.report.forwards < plain.report.forwards


def test_gate_of_totals_holds(pipe: TextDiffusionPipeline) -> None:
    [row] = [row for row in recorded() if (row["what"], row["steps"]) == ("totals", ANSWER)]
    count = 48
    share = sum(answered(pipe, bundled.text_problems("totals", count))) / count
    # The first of those that were measured: four standard deviations, and one more problem for p = 0 and p = 1.
    assert abs(share - row["exact"]) <= 4 * sqrt(row["exact"] * (1 - row["exact"]) / count) + 1 / count


def recorded() -> list[dict]:  # type: ignore[type-arg]
    rows: list[dict] = json.loads((bundled.text_path() / "gates.json").read_text())  # type: ignore[type-arg]
    return [{"steps": None, **row} for row in rows]


def test_card_shows_all_that_was_measured() -> None:
    rows, page = recorded(), (bundled.text_path() / "README.md").read_text()
    assert [(row["what"], row["steps"]) for row in rows if row["steps"]] == [(k, s) for k in KINDS for s in STEPS]
    assert [row["masked"] for row in rows if row["what"] == "source"] == list(SHARES)
    for row in rows:
        if row["what"] == "source":
            assert f"| {row['masked']:.0%} | {row['n']} | {row['right']:.3f} | {row['loss']:.3f} |" in page
            assert row["perplexity"] == pytest.approx(exp(row["loss"]))
        else:
            assert f"| {row['what']} | {row['n']} | {row['steps']} | {row['exact']:.3f} (" in page


def test_example_of_the_card_runs(capsys: pytest.CaptureFixture[str]) -> None:
    example = (bundled.text_path() / "README.md").read_text().split("```python\n")[1].split("```")[0]
    exec(compile(example, "README.md", "exec"), {})
    assert capsys.readouterr().out.startswith(bundled.text_problems("totals", 1)[0].prompt)


def test_answers_count_only_if_they_are_exact(pipe: TextDiffusionPipeline) -> None:
    prompts = bundled.text_prompts(4)
    texts = pipe(prompts, num_inference_steps=10).texts
    right = [Problem(prompt, text) for prompt, text in zip(prompts, texts, strict=True)]
    wrong = [Problem(problem.prompt, problem.answer + "0") for problem in right]
    assert answered(pipe, right + wrong, steps=10) == [True] * 4 + [False] * 4


def test_masked_tokens_are_as_many_as_asked_for_and_scored_by_the_model(pipe: TextDiffusionPipeline) -> None:
    tokens = passages(pipe, 4)
    assert tokens.shape == (4, 256)
    seen = []
    hook = pipe.model.register_forward_pre_hook(
        lambda _, args, kwargs: seen.append(kwargs["input_ids"]), with_kwargs=True
    )
    right, loss = filled(pipe, tokens, 0.5)
    hook.remove()
    masked = seen[0] == pipe.config.mask_token_id
    assert masked.sum(1).tolist() == [128] * 4
    assert torch.equal(seen[0][~masked], tokens[~masked])
    chances = pipe.model(seen[0], use_cache=False).logits[masked].softmax(-1)
    assert right == pytest.approx((chances.argmax(-1) == tokens[masked]).float().mean().item())
    assert loss == pytest.approx(-chances.gather(1, tokens[masked][:, None]).log().mean().item(), rel=1e-4)


@pytest.fixture
def trained(tmp_path: Path, pipe: TextDiffusionPipeline) -> Path:
    """The folder of a training that has just begun."""
    folder = tmp_path / "training"
    pipe.tokenizer.save_pretrained(folder / "tokenizer")
    trainer = LanguageTrainer(build(pipe.tokenizer), pipe.config.mask_token_id, Recipe(minutes=7), folder)
    trainer.ema.shadow_params = [weight + 0.25 for weight in trainer.ema.shadow_params]
    trainer.iteration, trainer.seconds = 1234, 180.0
    trainer.save()
    return folder


def test_export_ships_the_averaged_weights(trained: Path, tmp_path: Path) -> None:
    shipped = tmp_path / "shipped"
    export(trained, shipped, count=0, note="It was stopped.")
    model = bundled.text(folder=shipped).model
    average = torch.load(trained / "state.pt", weights_only=True)["ema"]["shadow_params"]
    for weight, expected in zip(model.parameters(), average, strict=True):
        assert torch.equal(weight, expected.half().float())
    page = (shipped / "README.md").read_text()
    assert "1,234 batches" in " ".join(page.split())
    assert "3 minutes" in page
    assert "It was stopped." in page
    assert "Nothing yet." in page
    assert str(tmp_path) not in "".join(file.read_text() for file in shipped.rglob("*.json"))


def test_export_of_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="run the training command with --output"):
        export(tmp_path, tmp_path / "shipped")
    assert not (tmp_path / "shipped").exists()


def test_measurement_fills_the_card(pipe: TextDiffusionPipeline) -> None:
    rows = measure(pipe, 2, stretches=2)
    assert len(rows) == len(KINDS) * len(STEPS) + len(SHARES)
    page = card(pipe, {"iteration": 1, "seconds": 60.0, "decay": 0.5}, 95, rows)
    for row in rows:
        if row["what"] in KINDS:
            assert 0 <= row["low"] <= row["exact"] <= row["high"] <= 1  # type: ignore[operator]
            assert f"| {row['what']} | 2 | {row['steps']} | {row['exact']:.3f} (" in page
    assert exact(pipe, "chain", 2) == next(row["exact"] for row in rows if row["what"] == "chain")
