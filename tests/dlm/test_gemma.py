from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import BlockRefinementScheduler, DiffusionGemmaPipeline
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor
from transformers import (
    DiffusionGemmaConfig,
    DiffusionGemmaForBlockDiffusion,
    DiffusionGemmaTextConfig,
    Gemma4VisionConfig,
    PreTrainedTokenizerFast,
)

from diffaccel import accelerate_pipeline
from diffaccel.dlm.gemma import refuse

CANVAS, STEPS = 8, 6
SAYS_IT = "{% for m in messages %}{{ m.content }}{% endfor %}"


@pytest.fixture(scope="module")
def pipe() -> DiffusionGemmaPipeline:
    """Two layers of width 32; the toy knows words w0 to w59."""
    torch.manual_seed(0)
    text = DiffusionGemmaTextConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
        global_head_dim=16,
        sliding_window=16,
        layer_types=["sliding_attention", "full_attention"],
        num_experts=2,
        top_k_experts=1,
        moe_intermediate_size=16,
    )
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "head_dim": 8}
    vision = Gemma4VisionConfig(num_attention_heads=2, num_key_value_heads=2, **sizes)
    special = {"image_token_id": 60, "boi_token_id": 61, "eoi_token_id": 62}
    config = DiffusionGemmaConfig(text_config=text, vision_config=vision, canvas_length=CANVAS, **special)
    words = Tokenizer(models.WordLevel({f"w{i}": i for i in range(60)}, unk_token="w0"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    processor = PreTrainedTokenizerFast(tokenizer_object=words, eos_token="w1", chat_template=SAYS_IT)
    made = DiffusionGemmaPipeline(
        DiffusionGemmaForBlockDiffusion(config).eval(), BlockRefinementScheduler(threshold=2.0), processor
    )
    made.set_progress_bar_config(disable=True)
    return made


def _generate(pipe: DiffusionGemmaPipeline, **options: Any) -> Tensor:
    settings: dict[str, Any] = {"num_inference_steps": STEPS, "confidence_threshold": None, "eos_early_stop": False}
    settings |= {"generator": torch.Generator().manual_seed(0), "output_type": "seq", **options}
    return pipe("w3 w4 w5 w6", gen_length=2 * CANVAS, **settings).sequences


@pytest.mark.parametrize(
    ("method", "reason"),
    [
        ("dkv", "no row of a canvas is the same at two steps"),
        ("ssd", "a draft cannot be checked"),
        ("sparsed", "a pattern found at one step"),
        ("fast_dllm", "is cached already"),
        ("block_cache", "in an encoder cache"),
    ],
)
def test_every_method_is_refused_with_its_reason_and_what_helps(
    pipe: DiffusionGemmaPipeline, method: str, reason: str
) -> None:
    with pytest.raises(ValueError, match=f"{reason}.*confidence_threshold.*num_inference_steps.*static"):
        accelerate_pipeline(pipe, method=method)
    assert getattr(pipe, "acceleration", None) is None


def test_an_unknown_method_is_refused_too(pipe: DiffusionGemmaPipeline) -> None:
    with pytest.raises(ValueError, match="object cannot accelerate DiffusionGemmaPipeline: its canvases"):
        refuse(pipe, object())


def test_the_reason_is_true_no_row_of_a_canvas_has_the_same_input_twice(pipe: DiffusionGemmaPipeline) -> None:
    inputs: list[Tensor] = []
    canvases: list[Tensor] = []
    committed: list[Tensor] = []

    def see(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        inputs.append((args[0] if args else kwargs["hidden_states"])[0].clone())

    def note(pipe: Any, step: int, index: int, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        canvases.append(tensors["canvas"][0].clone())
        committed.append(pipe.scheduler._committed[0].clone())
        return {}

    hook = pipe.model.model.decoder.layers[0].register_forward_pre_hook(see, with_kwargs=True)
    _generate(pipe, callback_on_step_end=note, callback_on_step_end_tensor_inputs=["canvas"])
    hook.remove()
    assert len(inputs) == len(canvases) == 2 * STEPS
    kept = fresh = 0
    for step in (s for s in range(2 * STEPS - 1) if s % STEPS not in (STEPS - 1, STEPS - 2)):
        known = committed[step]
        assert torch.equal(canvases[step][known], canvases[step + 1][known])  # committed tokens stay
        moved = (inputs[step + 2] - inputs[step + 1]).abs().amax(-1)
        assert moved[known].min() > 0  # and yet the rows of these tokens do not
        kept += int(known.sum())
        fresh += int((canvases[step][~known] != canvases[step + 1][~known]).sum())
    assert kept > 10
    assert fresh > 10


def test_what_helps_helps(pipe: DiffusionGemmaPipeline) -> None:
    calls: list[int] = []
    count = pipe.model.model.decoder.register_forward_hook(lambda *_: calls.append(1))
    free = _generate(pipe)
    assert len(calls) == 2 * STEPS
    # True as long as the text fits into the sliding window, which is 16 here.
    assert torch.equal(free, _generate(pipe, cache_implementation="static"))
    # A network that is sure of one word: a canvas ends as soon as it has said so twice.
    sure = torch.nn.functional.one_hot(torch.tensor(7), 64) * 100.0
    bias = pipe.model.lm_head.register_forward_hook(lambda module, args, logits: logits + sure)
    calls.clear()
    assert (_generate(pipe, confidence_threshold=0.005) == 7).all()
    assert len(calls) == 2 * 2
    bias.remove()
    count.remove()
