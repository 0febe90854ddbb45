"""Does `diffaccel generate-text` write what the pipeline writes, show and compare it, and refuse what it cannot do?"""

from __future__ import annotations

import io
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import constants
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from diffaccel import METHODS, accelerate_pipeline
from diffaccel.commands.arguments import PICTURE_METHODS, TEXT_METHODS
from diffaccel.commands.streaming import shown
from diffaccel.commands.text_options import REMASKINGS
from diffaccel.dlm.prompts import MASKED
from diffaccel.dlm.scores import DREAM, LLADA
from diffaccel.pipelines import bundled
from diffaccel.pipelines.text import TextDiffusionPipeline
from tests.command_line import Capture, run
from tests.dlm.published import LLADA as LLADA_CONFIG
from tests.dlm.published import llada_weights, write

FIRST, SECOND = bundled.text_prompts(2)


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def pipe() -> TextDiffusionPipeline:
    made = bundled.text()
    made.set_progress_bar_config(disable=True)
    return made


def data_of(capsys: Capture, *arguments: object) -> Any:
    status, out, _ = run(capsys, "generate-text", *arguments, "--json", "-")
    assert status == 0
    return json.loads(out)


def test_texts_are_those_of_the_pipeline_each_after_its_prompt(capsys: Capture, pipe: TextDiffusionPipeline) -> None:
    status, out, err = run(capsys, "generate-text", FIRST, SECOND, "--json", "texts.json")
    assert (status, err) == (0, "")
    first, second = pipe([FIRST, SECOND]).texts
    assert out.startswith(
        f"text-problems: 2 texts of 20 tokens, 20 steps, seed 0, float32 on cpu\n\n"
        f"> {FIRST}\n{first}\n\n> {SECOND}\n{second}\n\nLlamaForCausalLM, plain\n"
    )
    data = json.loads(Path("texts.json").read_text())
    assert data["texts"] == [first, second]
    assert (data["report"]["forwards"], data["report"]["method"], data["steps"]) == (20, None, 20)
    assert data["report"]["rows"] == data["report"]["whole"]
    assert [len(tokens) for tokens in data["tokens"]] == [20, 20]


def test_options_reach_the_call(capsys: Capture, pipe: TextDiffusionPipeline) -> None:
    options = ["--gen-length", 12, "--steps", 6, "--block-length", 6, "--temperature", 0.8, "--cfg-scale", 0.5]
    data = data_of(capsys, FIRST, *options, "--remasking", "random", "--seed", 3)
    how: dict[str, Any] = {"gen_length": 12, "num_inference_steps": 6, "block_length": 6, "temperature": 0.8}
    how |= {"cfg_scale": 0.5, "remasking": "random"}
    expected = pipe(FIRST, generator=torch.Generator().manual_seed(3), **how)
    assert data["arguments"] == how
    assert data["texts"] == expected.texts
    assert data["tokens"] == [one.tolist() for one in expected.sequences]
    assert (data["gen_length"], data["steps"], data["report"]["forwards"]) == (12, 6, 6)
    certain = data_of(capsys, FIRST, "--threshold", "0")
    assert (certain["arguments"], certain["report"]["forwards"]) == ({"threshold": 0}, 1)


def test_a_text_depends_on_its_prompt_and_seed_only(capsys: Capture) -> None:
    hot = ["--temperature", "20", "--seed"]
    together = data_of(capsys, SECOND, FIRST, *hot, 3)
    assert data_of(capsys, FIRST, *hot, 3)["tokens"] == together["tokens"][1:]
    assert data_of(capsys, FIRST, *hot, 4)["tokens"] != together["tokens"][1:]


def test_method_is_spelled_as_elsewhere_and_computes_fewer_rows(capsys: Capture, pipe: TextDiffusionPipeline) -> None:
    data = data_of(capsys, FIRST, "--method", "dkv:variant=interval,refresh=4")
    accelerate_pipeline(pipe, "dkv", variant="interval", refresh=4)
    try:
        expected = pipe(FIRST)
    finally:
        pipe.acceleration.remove()
    assert data["texts"] == expected.texts
    assert data["report"]["method"] == expected.report.method
    assert data["report"]["table"] == expected.report.table.computed
    assert data["report"]["rows"] < data["report"]["whole"]


def test_comparison_of_a_method_without_loss(capsys: Capture, pipe: TextDiffusionPipeline) -> None:
    arguments = [FIRST, SECOND, "--compare", "--method", "ssd:draft=3", "--json", "both.json"]
    status, out, err = run(capsys, "generate-text", *arguments)
    assert (status, err) == (0, "")
    data = json.loads(Path("both.json").read_text())
    texts = pipe([FIRST, SECOND]).texts
    assert data["plain"]["texts"] == data["accelerated"]["texts"] == texts
    assert (data["equal"], data["equal_tokens"]) == ([True, True], [20, 20])
    assert data["plain"]["report"]["forwards"] > data["accelerated"]["report"]["forwards"]
    assert {name: len(seconds) for name, seconds in data["seconds"].items()} == {"plain": 5, "accelerated": 5}
    for name in ("plain", "accelerated"):
        rate = data[name]["report"]["tokens"] / data["median_seconds"][name]
        assert data["tokens_per_second"][name] == pytest.approx(rate)
    assert data["speedup_range"][0] <= data["speedup"] <= data["speedup_range"][1]
    for words in (f"> {FIRST}\nplain", "Ssd draft=3", "median of 5 rounds", "Equal tokens: 40 of 40, in all of 2 of 2"):
        assert words in out


def test_comparison_counts_tokens_that_differ(capsys: Capture, pipe: TextDiffusionPipeline) -> None:
    options = ["--method", "fast_dllm:threshold=0", "--rounds", "1"]
    data = data_of(capsys, FIRST, "--compare", *options)
    plain, at_once = (data[name]["tokens"][0] for name in ("plain", "accelerated"))
    assert (data["accelerated"]["report"]["forwards"], data["rounds"]) == (1, 1)
    assert plain == pipe(FIRST).sequences[0].tolist()
    same = sum(a == b for a, b in zip(plain, at_once, strict=True))
    assert (data["equal_tokens"], data["equal"]) == ([same], [same == 20])


def test_comparison_has_a_default_and_says_so(capsys: Capture) -> None:
    status, out, _ = run(capsys, "generate-text", FIRST, "--compare", "--rounds", "1")
    assert status == 0
    assert "Dkv(" in out
    assert ", the default of --compare" in out
    assert "One run of each is no measurement of speed: add --rounds 5." in out


def test_text_is_streamed_to_standard_error_if_asked(capsys: Capture, pipe: TextDiffusionPipeline) -> None:
    status, out, err = run(capsys, "generate-text", FIRST, "--stream", "--json", "-")
    assert status == 0
    lines, text = err.splitlines(), json.loads(out)["texts"][0]
    assert lines == list(dict.fromkeys(output.texts[0] for output in pipe.stream(FIRST)))
    assert set(lines[0]) == {MASKED}
    assert lines[-1] == text
    assert len(lines) > 5


class Terminal(io.StringIO):
    """Standard error that says it is a terminal."""

    def isatty(self) -> bool:
        return True


def test_lines_of_a_terminal_are_rewritten_and_cleared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys, "stderr", terminal := Terminal())
    with shown(["p=", "one\nq="]) as show:
        show(["1▒", "▒▒"])
        show(["12", "▒4"])
    written = terminal.getvalue()
    up, erase = "\x1b[1A", "\x1b[2K"
    assert written.index("1▒") < written.index(up) < written.index("12")
    assert "one⏎q=" in written
    assert written.split("▒4")[-1].count(erase) == 2  # both lines are cleared at the end


def test_streaming_is_the_default_on_a_terminal_only(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    found = {}
    for options in ((), ("--no-stream",), ("--quiet",), ("--json", "-")):
        monkeypatch.setattr(sys, "stderr", terminal := Terminal())
        status, _, _ = run(capsys, "generate-text", FIRST, *options)
        assert status == 0
        found[options] = MASKED in terminal.getvalue()
    assert found == {(): True, ("--no-stream",): False, ("--quiet",): False, ("--json", "-"): False}


def checkpoint(folder: Path) -> Path:
    """LLaDA at toy size, in its published layout, with a tokenizer of single characters."""
    write(folder, LLADA_CONFIG, llada_weights(LLADA_CONFIG))
    characters = {chr(32 + i): i for i in range(80)}
    tokenizer = Tokenizer(models.WordLevel(characters, unk_token=" "))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    PreTrainedTokenizerFast(tokenizer_object=tokenizer).save_pretrained(folder)
    return folder


def test_published_checkpoint_in_a_folder(capsys: Capture, tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "llada")
    data = data_of(capsys, "ABC", "--model", folder, "--gen-length", 8, "--method", "dkv:refresh=2")
    pipe = TextDiffusionPipeline.from_checkpoint(folder)
    pipe.set_progress_bar_config(disable=True)
    accelerate_pipeline(pipe, "dkv", refresh=2)
    assert data["tokens"] == [one.tolist() for one in pipe("ABC", gen_length=8).sequences]
    status, _, err = run(capsys, "generate-text", "ABC", "--model", folder, "--steps", 200)
    assert status == 2
    assert "num_inference_steps=200 for gen_length=128" in err


def test_native_checkpoint_and_saved_pipeline_write_the_same(capsys: Capture) -> None:
    for part in ("model", "tokenizer"):
        shutil.copytree(bundled.text_path() / part, "native", dirs_exist_ok=True)
    shutil.copytree(bundled.text_path(), "saved")
    own = data_of(capsys, FIRST)["tokens"]
    assert data_of(capsys, FIRST, "--model", "saved")["tokens"] == own
    native = data_of(capsys, FIRST, "--model", "native", "--gen-length", 20, "--dtype", "float32")
    assert native["tokens"] == own


def test_hub_ids_are_taken_from_the_cache(capsys: Capture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    repository = tmp_path / "hub" / "models--some--llada"
    for name in ("snapshots", "refs"):
        (repository / name).mkdir(parents=True)
    checkpoint(repository / "snapshots" / "1234")
    (repository / "refs" / "main").write_text("1234")
    data = data_of(capsys, "ABC", "--model", "some/llada", "--gen-length", 4)
    assert (data["model"], data["report"]["forwards"]) == ("some/llada", 4)
    status, out, err = run(capsys, "generate-text", "ABC", "--model", "some/other")
    assert (status, out) == (1, "")
    assert err.startswith("diffaccel: error: cannot load some/other: ")
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--method taylorseer", "TaylorSeer forecasts features of pipelines with timesteps"),
        ("--method dkx", "unknown method 'dkx': did you mean 'dkv'?"),
        ("--method dkv:refresh=0", "refresh must be a whole number of at least 1, got 0"),
        ("--method dkv:speed=2", "dkv has no option 'speed'"),
        ("--method dkv:refresh", "'refresh' in 'dkv:refresh' is no option"),
        ("--method missing.yaml", "missing.yaml"),
        ("--method block_cache", "block_cache needs a model whose attention is causal between blocks"),
        ("--method ssd --temperature 1", "ssd checks whether a draft"),
        ("--compare --method fast --rounds 2", "TaylorSeer forecasts features"),
        ("--steps 21", "num_inference_steps=21 for gen_length=20"),
        ("--steps 0", "--steps: must be a whole number of at least 1, got '0'"),
        ("--gen-length 1.5", "--gen-length: must be a whole number of at least 1"),
        ("--block-length 3", "20 positions cannot be cut into blocks of 3"),
        ("--block-length 5 --steps 6", "6 steps cannot be shared evenly by 4 blocks"),
        ("--threshold 2", "--threshold: must be a number from 0 to 1, got '2'"),
        ("--temperature -1", "--temperature: must be a number of at least 0, got '-1'"),
        ("--cfg-scale high", "--cfg-scale: must be a number of at least 0, got 'high'"),
        ("--remasking none", "invalid choice: 'none'"),
        ("--rounds 2", "--rounds belongs to --compare"),
        ("--stream --quiet", "--stream shows what --quiet leaves out"),
        ("--device toaster", "--device toaster is not known"),
        ("--json nowhere/x.json", "there is no folder nowhere"),
        ("--model nothing", "there is no 'nothing': give text-problems"),
        ("--model flux-digits", "it draws pictures: use diffaccel generate"),
        ("--model .", "has neither model_index.json nor config.json"),
    ],
)
def test_bad_input_is_refused_in_one_line_before_anything_is_loaded(
    arguments: str, message: str, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    for load in ("from_pretrained", "from_checkpoint"):
        monkeypatch.setattr(TextDiffusionPipeline, load, lambda *_, **__: pytest.fail("the model was loaded"))
    status, out, err = run(capsys, "generate-text", FIRST, *arguments.split())
    assert (status, out) == (2, "")
    assert err.startswith("diffaccel: error: ")
    assert message in err
    assert err.count("\n") == 1


def test_models_that_write_no_text_are_refused(capsys: Capture) -> None:
    status, _, err = run(capsys, "generate-text", FIRST, "--model", bundled.path())
    assert status == 2
    assert "is a FluxPipeline, not a TextDiffusionPipeline" in err
    Path("causal").mkdir()
    Path("causal/config.json").write_text(json.dumps({"model_type": "llama"}))
    status, _, err = run(capsys, "generate-text", FIRST, "--model", "causal")
    assert status == 1
    assert "holds a causal llama model" in err


def test_commands_of_pictures_point_to_this_one(capsys: Capture) -> None:
    status, _, err = run(capsys, "generate", FIRST, "--model", "text-problems")
    assert (status, err.split(",")[0]) == (
        2,
        "diffaccel: error: text-problems writes text: use diffaccel generate-text",
    )
    status, _, err = run(capsys, "generate", FIRST, "--method", "dkv")
    assert status == 2
    assert "Dkv accelerates diffusion language models" in err
    assert "a pipeline of pictures is none. Methods for it: taylorseer" in err


def test_broken_files_are_named(capsys: Capture) -> None:
    shutil.copytree(bundled.text_path(), "broken")
    Path("broken/model/model.safetensors").write_bytes(b"no weights")
    status, out, err = run(capsys, "generate-text", FIRST, "--model", "broken")
    assert (status, out) == (1, "")
    assert err.startswith("diffaccel: error: cannot load broken: ")


def test_choices_are_those_of_the_library() -> None:
    assert set(REMASKINGS) == {*LLADA, *DREAM}
    assert {*TEXT_METHODS, *PICTURE_METHODS} == METHODS.keys()
    assert TEXT_METHODS == ("dkv", "fast_dllm", "block_cache", "sparsed", "ssd")
