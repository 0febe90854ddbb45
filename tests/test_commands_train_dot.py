"""Does `diffaccel train-dot` train what was asked for, go on where it was stopped, and refuse what cannot be?"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDPMPipeline, DDPMScheduler, PNDMScheduler, UNet2DModel
from PIL import Image
from safetensors.torch import load_file

from diffaccel.commands import dot_options
from diffaccel.commands.parser import build_parser
from diffaccel.morse.coordinates import RESIDUAL_SPACES
from diffaccel.morse.dataset import PictureFolder
from diffaccel.morse.dot import KINDS, MorseDot
from diffaccel.morse.recipe import DotRecipe
from diffaccel.pipelines import image
from tests.command_line import Capture, run
from tests.tiny import FAMILIES, randomize

DOT = ["--m", "1", "--widths", "16", "--rank", "2"]
SHORT = [
    *("--iterations", "3", "--batch", "2", "--checkpoint-every", "1"),
    *("--learning-rate", "0.01", "--ema", "0.5", "--device", "cpu"),
]


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def save(folder: str, *names: str, side: int = 12) -> None:
    """Pictures of noise."""
    for seed, name in enumerate(names):
        file = Path(folder, name)
        file.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(seed).integers(0, 256, (side, side + seed, 3), np.uint8)
        Image.fromarray(pixels).save(file)


def dit() -> None:
    """A DiT and pictures of two classes."""
    FAMILIES["dit"].make().save_pretrained("dit")
    save("pictures", "3/a.png", "3/b.png", "7/c.png", "7/d.png", "7/e.png")


def grey() -> None:
    """An unconditional pipeline of grey pixels, as DDPM is."""
    network = UNet2DModel(
        sample_size=8,
        in_channels=1,
        out_channels=1,
        block_out_channels=(8, 16),
        layers_per_block=1,
        norm_num_groups=4,
        down_block_types=("DownBlock2D",) * 2,
        up_block_types=("UpBlock2D",) * 2,
    )
    DDPMPipeline(randomize(network), DDPMScheduler()).save_pretrained("grey")
    save("pictures", "a.png", "b.png", "c.png")


def train(capsys: Capture, *arguments: object) -> tuple[int, str, str]:
    return run(capsys, "train-dot", *arguments, *SHORT)


def weights(folder: str) -> dict[str, torch.Tensor]:
    return dict(load_file(Path(folder, "diffusion_pytorch_model.safetensors")))


def test_a_dot_is_trained_written_and_described(capsys: Capture) -> None:
    dit()
    status, out, err = train(capsys, "dit", "--data", "pictures", "-o", "dot", "--json", "data.json", *DOT)
    assert (status, err) == (0, "")
    data = json.loads(Path("data.json").read_text())
    assert (data["pictures"], data["scheduler"], data["output"]) == (5, "DDIMScheduler", "dot")
    assert data["recipe"] == json.loads(
        json.dumps(DotRecipe(iterations=3, batch=2, checkpoint_every=1, ema=0.5, learning_rate=0.01).as_dict())
    )
    assert [entry["iteration"] for entry in data["history"]] == [1, 2, 3]
    assert data["bytes"] == Path("dot/diffusion_pytorch_model.safetensors").stat().st_size
    dot, network = MorseDot.from_pretrained("dot"), FAMILIES["dit"].make().transformer
    dot.attach(network)
    own = sum(parameter.numel() for parameter in dot.parameters())
    assert data["dot"]["parameters"] == own
    assert (dot.config.m, list(dot.config.widths), dot.config.rank) == (1, [16], 2)
    assert (dot.config.scheduler, dot.config.residual_space) == ("DDIMScheduler", "epsilon")
    assert f"{own:,} parameters of its own" in out
    assert "3 iterations of 2, uniform pairs under DDIMScheduler" in out
    assert "wrote dot" in out


def test_a_training_that_was_stopped_goes_on_as_if_it_had_not_been(
    capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    dit()
    arguments = ["dit", "--data", "pictures", *DOT, "-o"]
    assert train(capsys, *arguments, "whole")[0] == 0
    read, real = [], PictureFolder._picture

    def stopping(self: PictureFolder, file: Path) -> torch.Tensor:
        read.append(file)
        if len(read) == 6:  # one to look at, two an iteration: in the third
            raise KeyboardInterrupt
        return real(self, file)

    with monkeypatch.context() as patch:
        patch.setattr(PictureFolder, "_picture", stopping)
        assert train(capsys, *arguments, "stopped") == (130, "", "diffaccel: error: interrupted\n")
    log = json.loads(Path("stopped/training.json").read_text())
    assert [entry["iteration"] for entry in log["history"]] == [1, 2]
    assert not all(torch.equal(weights("stopped")[name], value) for name, value in weights("whole").items())
    assert train(capsys, *arguments, "stopped")[0] == 0
    assert weights("stopped").keys() == weights("whole").keys()
    assert all(torch.equal(weights("stopped")[name], value) for name, value in weights("whole").items())
    status, _, err = run(capsys, "train-dot", *arguments, "stopped", *SHORT, "--batch", "3")
    assert status == 2
    assert "of a training with other settings: batch (2, now 3)" in err
    status, _, _ = run(capsys, "train-dot", *arguments, "stopped", *SHORT, "--batch", "3", "--fresh")
    assert status == 0
    other = run(capsys, "train-dot", *arguments, "other", *SHORT, "--batch", "3")
    assert other[0] == 0
    assert all(torch.equal(weights("stopped")[name], value) for name, value in weights("other").items())


def test_a_killed_process_loses_nothing_but_what_came_after_its_checkpoint(capsys: Capture) -> None:
    grey()
    many = ["--iterations", "80", "--batch", "2", "--checkpoint-every", "2", "--device", "cpu"]
    arguments = ["grey", "--data", "pictures", *DOT, "--residual-space", "sample", *many, "-o"]
    command = [sys.executable, "-m", "diffaccel.cli", "train-dot", *arguments, "killed"]
    child = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        while not Path("killed/training.json").is_file():
            assert child.poll() is None, "it ended by itself"
            time.sleep(0.05)
    finally:
        child.kill()  # SIGKILL: nothing can be tidied up
        child.wait()
    reached = json.loads(Path("killed/training.json").read_text())["history"][-1]["iteration"]
    assert reached < 80
    assert run(capsys, "train-dot", *arguments, "killed")[0] == 0
    assert run(capsys, "train-dot", *arguments, "whole")[0] == 0
    killed, whole = (json.loads(Path(name, "training.json").read_text()) for name in ("killed", "whole"))
    assert killed["history"] == whole["history"]
    assert all(torch.equal(weights("killed")[name], value) for name, value in weights("whole").items())


def test_another_dot_is_trained_on(capsys: Capture) -> None:
    dit()
    data = ["dit", "--data", "pictures"]
    options = ["--guidance", "2", "3", "--pairs", "plan", "--plans", "1+2"]
    status, _, err = train(capsys, *data, "-o", "guided", *DOT, *options, "--guided")
    assert status == 2
    assert "a guided Dot is for pipelines that run both branches of guidance as halves" in err
    assert train(capsys, *data, "-o", "first", *DOT, *options)[0] == 0
    small = [*SHORT, "--learning-rate", "1e-9"]
    assert run(capsys, "train-dot", *data, "-o", "second", "--dot", "first", *small)[0] == 0
    assert MorseDot.from_pretrained("second").config.rank == 2
    for name, value in weights("first").items():
        torch.testing.assert_close(weights("second")[name], value, rtol=0, atol=1e-7)
    new = MorseDot.of(FAMILIES["dit"].make().transformer, m=1, widths=(16,), rank=2)
    zero = [name for name, value in new.state_dict().items() if not value.any()]
    assert max(float(weights("first")[name].abs().max()) for name in zero) > 1e-5, "else any Dot would be as near"


def test_an_unconditional_pipeline_that_adds_noise(capsys: Capture) -> None:
    grey()
    arguments = ["grey", "--data", "pictures", "--kind", "independent", "--body", '{"block_out_channels": [4, 8]}']
    status, _, err = train(capsys, *arguments, "--m", "1", "--widths", "8", "-o", "dot")
    assert (status, err) == (0, "")
    config = MorseDot.from_pretrained("dot").config
    assert (config.residual_space, config.scheduler, config.kind) == ("sample", "DDPMScheduler", "independent")
    status, _, err = train(
        capsys, *arguments, "--m", "1", "--widths", "8", "-o", "other", "--scheduler", "DDIMScheduler"
    )
    assert (status, err) == (0, "")
    config = MorseDot.from_pretrained("other").config
    assert (config.residual_space, config.scheduler) == ("epsilon", "DDIMScheduler")


def test_prompts_of_a_folder_and_bundled_pictures(capsys: Capture) -> None:
    save("pictures", "a.png", "b.png", side=40)
    for name, text in (("a", "a red 7 on a white background"), ("b", "a blue 2 on a black background")):
        Path("pictures", f"{name}.txt").write_text(text)
    status, out, err = train(capsys, "sd-digits", "--data", "pictures", "-o", "one", *DOT, "--guidance", "2", "4")
    assert (status, err) == (0, "")
    assert out.startswith("sd-digits: a Dot of kind shared, m = 1")
    status, out, err = train(
        capsys, "flux-digits", "--data", "bundled", "-o", "two", *DOT, "--blocks", "0,2", "--json", "-"
    )
    assert (status, err) == (0, "")
    data: dict[str, Any] = json.loads(out)
    assert data["dot"]["blocks"] == [0, 2]
    assert data["pictures"] > 100_000


def test_options_have_the_words_and_defaults_of_the_library() -> None:
    assert (dot_options.KINDS, dot_options.SPACES) == (KINDS, RESIDUAL_SPACES)
    args = build_parser().parse_args(["train-dot", "m", "--data", "d", "-o", "o"])
    for name, value in DotRecipe().as_dict().items():
        if hasattr(args, name):
            assert getattr(args, name) == value, name
    given = "--plans 1+2,3+9 --guidance 2 10 --pairs on-policy --loss-norm per_gap --mixed-precision bf16 --seed 4"
    args = build_parser().parse_args(["train-dot", "m", "--data", "d", "-o", "o", *given.split()])
    assert (args.plans, args.guidance, args.pairs) == (((1, 2), (3, 9)), [2, 10], "on-policy")
    assert (args.loss_norm, args.mixed_precision, args.seed) == ("per_gap", "bf16", 4)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("dit -o dot", "required: --data"),
        ("dit --data pictures", "required: -o/--output"),
        ("nothing --data pictures -o dot", "there is no 'nothing'"),
        ("dit --data pictures -o nowhere/dot", "there is no folder nowhere"),
        ("dit --data pictures -o file", "-o file is a file"),
        ("dit --data pictures -o dit", "-o dit holds a pipeline"),
        ("dit --data pictures -o model", "holds a model, but no checkpoint to go on from: --fresh replaces it"),
        ("dit --data nowhere -o dot", "nowhere is not a folder"),
        ("dit --data empty -o dot", "there is no picture in empty"),
        ("dit --data empty/.. -o dot", "is no class: the pipeline names no classes"),
        ("dit --data bundled -o dot", "--data bundled is for flux-digits"),
        ("dit-digits --data bundled --height 64 -o dot", "DiTPipeline takes no height"),
        ("sd-digits --data bundled --height 64 -o dot", "leave out --height and --width"),
        ("sd-digits --data pictures -o dot", "5 pictures have no caption"),
        ("dit --data pictures -o dot --plans 3", "--plans: must be Dash+Dot steps"),
        ("dit --data pictures -o dot --plans 3+0", "--plans: must be Dash+Dot steps"),
        ("dit --data pictures -o dot --widths 96,x", "--widths: must be whole numbers such as 96,160"),
        ("dit --data pictures -o dot --body [1]", "--body: must be a JSON object"),
        ("dit --data pictures -o dot --kind large", "invalid choice: 'large'"),
        ("dit --data pictures -o dot --guidance 3", "expected 2 arguments"),
        ("dit --data pictures -o dot --guidance 1 2", "a range of scales above 1"),
        ("dit --data pictures -o dot --ema 1", "ema must be from 0 to below 1"),
        ("dit --data pictures -o dot --learning-rate 0", "learning_rate and clip must be positive"),
        ("dit --data pictures -o dot --iterations 0", "--iterations: must be a whole number of at least 1"),
        ("dit --data pictures -o dot --mixed-precision fp16 --device cpu", "fp16 needs a GPU"),
        ("dit --data pictures -o dot --scheduler Euler", "Euler is no scheduler of diffusers"),
        ("dit --data pictures -o dot --scheduler HeunDiscreteScheduler", "asks the network 2 times a step"),
        ("dit --data pictures -o dot --scheduler DDPMScheduler --residual-space epsilon", "DDPMScheduler adds noise"),
        ("dit --data pictures -o dot --residual-space sample", "DDIMScheduler adds none"),
        ("pndm --data pictures -o dot", "PNDMScheduler asks the network about one time twice"),
        ('dit --data pictures -o dot --body {"num_layers":1}', "body"),
        ("dit --data pictures -o dot --blocks 9", "blocks"),
        ("dit --data pictures -o dot --dot empty", "--dot empty has no config.json"),
        ("dit --data pictures -o dot --dot model", "holds a DiTTransformer2DModel, not a MorseDot"),
        ("dit --data pictures -o dot --dot flux", "is for a FluxTransformer2DModel, not a DiTTransformer2DModel"),
        ("dit --data pictures -o dot --dot flux --rank 4", "leave out --rank, or --dot for a new Dot"),
        ("dit --data pictures -o dot --json nowhere/x.json", "there is no folder nowhere"),
        ("dit --data pictures -o dot --device warp", "--device warp is not known"),
    ],
)
def test_bad_input_is_refused_before_the_model_is_loaded(
    arguments: str, message: str, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(image, "load", lambda *_: pytest.fail("the model was loaded"))
    dit()
    Path("file").write_text("")
    Path("empty").mkdir()
    shutil.copytree("dit/transformer", "model")
    if "pndm" in arguments:
        pipe = FAMILIES["dit"].make()
        pipe.scheduler = PNDMScheduler()
        pipe.save_pretrained("pndm")
    if "--dot flux" in arguments:
        MorseDot.of(FAMILIES["flux"].make().transformer, m=1, widths=(16,), rank=2).save_pretrained("flux")
    before = sorted(Path().rglob("*"))
    status, out, err = run(capsys, "train-dot", *arguments.split())
    assert (status, out) == (2, "")
    assert message in err
    assert sorted(Path().rglob("*")) == before
