"""Is the CLIP score the cosine it claims to be, and that of torchmetrics?"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import warnings
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchmetrics.multimodal.clip_score import CLIPScore
from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPModel, CLIPProcessor, CLIPTextModel

from diffaccel.metrics.clip import ClipScorer
from diffaccel.metrics.features import fingerprint
from diffaccel.pipelines.bundled.digits.tokenizers import CLIP_LENGTH, clip_tokenizer

PROMPTS = ["a red 7 on a white background", "a green 3", "a cyan 7 left of a red 3 on a yellow background"]


def toy() -> tuple[CLIPModel, CLIPProcessor]:
    """A random CLIP of two layers with pictures of 32 pixels and a space of 24 dimensions."""
    torch.manual_seed(1)
    tokenizer = clip_tokenizer()
    layers = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    special = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    text = layers | special | {"vocab_size": len(tokenizer), "max_position_embeddings": CLIP_LENGTH}
    vision = layers | {"image_size": 32, "patch_size": 8}
    model = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=24)).eval()
    for name, weight in model.named_parameters():
        if "projection" in name or "embedding" in name:
            nn.init.normal_(weight, std=0.5)  # the usual 0.02 would make all pictures alike
    images = CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    return model, CLIPProcessor(images, tokenizer)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("clip") / "toy-clip"
    for part in toy():
        part.save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def scorer(folder: Path) -> ClipScorer:
    return ClipScorer(folder)


def pictures(n: int = 3, side: tuple[int, int] = (40, 48)) -> Tensor:
    return torch.rand(n, 3, *side, generator=torch.Generator().manual_seed(3))


class Wrapped(nn.Module):
    """The model as torchmetrics 1.9 expects it: features as tensors, which transformers 5 no longer gives."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model, self.config = model, model.config

    def get_image_features(self, pixels: Tensor) -> Tensor:
        return self.model.get_image_features(pixels).pooler_output

    def get_text_features(self, ids: Tensor, mask: Tensor) -> Tensor:
        return self.model.get_text_features(ids, mask).pooler_output


def torchmetrics_score(folder: Path, images: Tensor, prompts: list[str]) -> float:
    model, processor = CLIPModel.from_pretrained(folder), CLIPProcessor.from_pretrained(folder)
    metric = CLIPScore(lambda: (Wrapped(model), processor))
    metric.update(images, prompts)
    return float(metric.compute())


def test_the_mean_score_is_that_of_torchmetrics(folder: Path, scorer: ClipScorer) -> None:
    images = (pictures(6) * 255).round().byte()
    ours = scorer.scores(images / 255, PROMPTS * 2)
    theirs = [torchmetrics_score(folder, image, [prompt]) for image, prompt in zip(images, PROMPTS * 2, strict=True)]
    assert ours.dtype == torch.float64
    assert (ours > 0).any()
    assert (ours < 0).any()
    assert ours.clamp(min=0).tolist() == pytest.approx(theirs, abs=1e-4)
    positive = [i for i in range(6) if ours[i] > 0]
    mean = torchmetrics_score(folder, images[positive], [(PROMPTS * 2)[i] for i in positive])
    assert ours[positive].mean().item() == pytest.approx(mean, abs=1e-4)


def test_a_negative_mean_is_not_clamped(folder: Path, scorer: ClipScorer) -> None:
    scores = scorer.scores(pictures(6), PROMPTS * 2)
    worst = int(scores.argmin())
    image = (pictures(6)[worst] * 255).round().byte()
    assert scores[worst] < -1
    assert torchmetrics_score(folder, image, [(PROMPTS * 2)[worst]]) == 0


def test_the_score_is_the_cosine_of_the_projected_features(folder: Path, scorer: ClipScorer) -> None:
    model, processor = toy()
    images = (pictures() * 255).round().byte()
    pixels = processor.image_processor(list(images.permute(0, 2, 3, 1).numpy()), return_tensors="pt")["pixel_values"]
    text = processor.tokenizer(PROMPTS, padding=True, return_tensors="pt")
    with torch.no_grad():
        a = model.visual_projection(model.vision_model(pixels).pooler_output)
        b = model.text_projection(model.text_model(**text).pooler_output)
    expected = 100 * nn.functional.cosine_similarity(a, b)
    assert scorer.scores(images / 255, PROMPTS).tolist() == pytest.approx(expected.tolist(), abs=1e-4)


def test_pictures_are_rounded_to_bytes_and_not_cut_off(scorer: ClipScorer) -> None:
    images = (pictures() * 254).round()  # so that 0.4 more is still in range
    assert scorer.scores((images + 0.4) / 255, PROMPTS).equal(scorer.scores(images / 255, PROMPTS))
    assert scorer.scores((images + 0.6) / 255, PROMPTS).equal(scorer.scores((images + 1) / 255, PROMPTS))


def test_scores_do_not_depend_on_the_batch(scorer: ClipScorer) -> None:
    images, prompts = pictures(5), [*PROMPTS, "a blue 1", "7"]
    whole = scorer.scores(images, prompts)
    assert whole.shape == (5,)
    assert scorer.scores(images, prompts, batch=2).tolist() == pytest.approx(whole.tolist(), abs=1e-4)
    assert len({round(score, 3) for score in whole.tolist()}) == 5


def test_a_picture_as_small_as_three_pixels_is_read_the_right_way_round(scorer: ClipScorer) -> None:
    # [3, 3, 3] could be taken for channels first as well as for channels last.
    small = torch.zeros(1, 3, 3, 3)
    small[0, 0] = 1
    large = small.repeat_interleave(11, 2).repeat_interleave(11, 3)  # one red picture in two sizes
    a, b = (scorer.scores(red, ["a red 7"]).item() for red in (small, large))
    assert a == pytest.approx(b, abs=1e-4)


def test_a_prompt_that_is_too_long_is_cut_with_a_warning(scorer: ClipScorer) -> None:
    long = " ".join(["a red 7 on a white background"] * 5)
    with pytest.warns(UserWarning, match=f"1 of 2 prompts have more than the {CLIP_LENGTH} tokens toy-clip takes"):
        scores = scorer.scores(pictures(2), [long, "a red 7"])
    assert scores.isfinite().all()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        scorer.scores(pictures(2), ["a green 3", "a red 7"])


def test_the_identity_tells_models_apart_and_not_their_files(folder: Path, scorer: ClipScorer, tmp_path: Path) -> None:
    model, _ = toy()
    assert scorer.identity == {"name": "toy-clip", "weights": fingerprint(model), "dimension": 24}
    assert len(scorer.identity["weights"]) == 64
    shutil.copytree(folder, copy := tmp_path / "sharded")
    (copy / "model.safetensors").unlink()
    model.save_pretrained(copy, max_shard_size="50KB")
    assert not (copy / "model.safetensors").exists()
    assert ClipScorer(copy).identity == scorer.identity | {"name": "sharded"}
    with torch.no_grad():
        model.visual_projection.weight[0, 0] += 1e-3
    assert fingerprint(model) != scorer.identity["weights"]


def test_the_numbers_are_the_same_where_the_processor_is_kept_in_a_file_of_its_own(
    folder: Path, scorer: ClipScorer, tmp_path: Path
) -> None:
    # Published checkpoints have preprocessor_config.json; transformers 5 writes processor_config.json.
    shutil.copytree(folder, copy := tmp_path / "old")
    for file in copy.glob("*processor_config.json"):
        file.unlink()
    toy()[1].image_processor.save_pretrained(copy)
    assert (copy / "preprocessor_config.json").is_file()
    assert ClipScorer(copy).scores(pictures(), PROMPTS).equal(scorer.scores(pictures(), PROMPTS))


def damaged(folder: Path, path: Path, what: str) -> Path:
    shutil.copytree(folder, path)
    if what == "kind":
        CLIPTextModel(toy()[0].config.text_config).save_pretrained(path)
    elif what == "weights":
        (path / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:1000])
    elif what == "missing":
        (path / "model.safetensors").unlink()
    elif what == "lacking":
        model, _ = toy()
        state = {name: weight for name, weight in model.state_dict().items() if "visual_projection" not in name}
        model.save_pretrained(path, state_dict=state)
    elif what == "config":
        (path / "config.json").write_text(json.dumps([]))
    return path


@pytest.mark.parametrize(
    ("what", "error", "message"),
    [
        ("kind", ValueError, "of type 'clip_text_model', not 'clip'"),
        ("weights", OSError, r"cannot load the CLIP model .*weights"),
        ("missing", OSError, r"cannot load the CLIP model .*no file named"),
        ("lacking", OSError, "lacks 1 weights, among them visual_projection.weight"),
        ("config", OSError, "cannot load the CLIP model"),
    ],
)
def test_a_damaged_folder_is_refused(
    folder: Path, tmp_path: Path, what: str, error: type[Exception], message: str
) -> None:
    path = damaged(folder, tmp_path / "weights", what)
    with pytest.raises(error, match=message) as caught:
        ClipScorer(path)
    assert "--download" not in str(caught.value)


def requests_of(code: str, tmp_path: Path) -> tuple[str, int]:
    """What a process prints that takes this machine for the hub, and how often it asked; the hub here has nothing."""
    asked: list[str] = []

    class EmptyHub(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            asked.append(self.path)
            self.send_error(404)

        do_GET = do_HEAD  # noqa: N815

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), EmptyHub) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        local = {
            "HF_HUB_OFFLINE": "0",
            "HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}",
            "no_proxy": "127.0.0.1",
        }
        environment = os.environ | local | {"HF_HOME": str(tmp_path), "HF_HUB_DISABLE_TELEMETRY": "1"}
        result = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
        server.shutdown()
    return result.stderr.strip().splitlines()[-1], len(asked)


@pytest.mark.parametrize("download", [False, True])
def test_a_hub_id_that_is_not_in_the_cache_is_fetched_only_if_asked(tmp_path: Path, download: bool) -> None:
    code = f"from diffaccel.metrics.clip import ClipScorer; ClipScorer('nobody/no-such-clip', download={download})"
    error, count = requests_of(code, tmp_path)
    assert error.startswith("OSError: cannot load the CLIP model nobody/no-such-clip: ")
    assert error.endswith("give a folder, or allow --download") is not download
    assert (count > 0) is download


@pytest.mark.parametrize(
    ("images", "prompts", "error", "message"),
    [
        (pictures(2), ["a red 7"], ValueError, "got 2 pictures and 1 prompts"),
        (pictures(1), "a red 7", TypeError, "a list of texts"),
        (pictures(1)[:, :1], ["a red 7"], ValueError, "3 channels, got 1"),
        (pictures(1) * 2, ["a red 7"], ValueError, r"lie in \[0, 1\]"),
        (pictures(1).byte(), ["a red 7"], TypeError, "floating point, got torch.uint8"),
        (pictures(1)[0], ["a red 7"], ValueError, r"\(n, c, h, w\)"),
    ],
)
def test_scores_say_what_is_wrong(
    scorer: ClipScorer, images: Tensor, prompts: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        scorer.scores(images, prompts)
