"""Examples that `--help` shows."""

EXAMPLES = """\
examples:
  diffaccel generate "a red 7 on a white background" -o seven.png
  diffaccel generate "a red 7 on a white background" "a blue 2 on a black background" --compare -o both.png
  diffaccel generate "a fox in the snow" --model black-forest-labs/FLUX.1-dev --method taylorseer --interval 6
  diffaccel generate-text "sort 3141592653589793=" --method ssd --compare
  diffaccel info black-forest-labs/FLUX.1-dev --dtype bfloat16
"""
GENERATE_EXAMPLES = """\
examples:
  one picture, by the bundled pipeline:
    diffaccel generate "a red 7 on a white background" -o seven.png
  the same without and with TaylorSeer, the pictures side by side, the numbers as JSON:
    diffaccel generate "a red 7 on a white background" --compare --interval 4 --order 2 -o both.png --json both.json
  a pipeline of your own, saved with pipe.save_pretrained("my-flux"):
    diffaccel generate "a fox in the snow" --model ./my-flux --method taylorseer --dtype bfloat16 --device cuda
"""
GENERATE_TEXT_EXAMPLES = """\
examples:
  an answer of the bundled model, shown while it is decoded:
    diffaccel generate-text "sort 3141592653589793="
  the same without and with a cache of keys and values, the numbers as JSON:
    diffaccel generate-text "sort 3141592653589793=" --compare --method dkv:variant=interval,refresh=4 --json both.json
  a checkpoint of your own, in blocks of 32 tokens:
    diffaccel generate-text "Once upon a time" --model ./LLaDA-8B-Base --gen-length 128 --block-length 32 \\
        --method fast_dllm --dtype bfloat16 --device cuda
"""
INFO_EXAMPLES = """\
examples:
  diffaccel info flux-digits
  diffaccel info black-forest-labs/FLUX.1-dev --dtype bfloat16 --order 2
  diffaccel info ./my-flux --height 768 --width 768 --level block --sites --json -
"""
EVALUATE_EXAMPLES = """\
examples:
  two settings of TaylorSeer on the bundled pipeline, offline:
    diffaccel evaluate --method taylorseer:interval=3,order=2 --method taylorseer:interval=5,order=1 -o evaluation
  a pipeline of your own, with prompts of your own and a reference of real pictures:
    diffaccel evaluate --model ./my-flux --prompts prompts.txt --num 1000 --method taylorseer:interval=6 \\
        --metrics psnr,ssim,lpips,clip,fid --clip-model openai/clip-vit-base-patch16 --reference ./photographs
  two folders of pictures that exist, paired by manifest or name:
    diffaccel evaluate --images ./accelerated --reference ./baseline --metrics psnr,ssim

Exit status 3: weights of a metric's network are not on this machine; the message says where to get them.
"""
CALIBRATE_EXAMPLES = """\
examples:
  diffaccel calibrate ./my-flux --prompts prompts.txt --num 32 --device cuda
  diffaccel evaluate --model ./my-flux --prompts others.txt --method fitted:interval=5 --method hyca:interval=5
"""
TUNE_EXAMPLES = """\
examples:
  diffaccel tune ./my-flux --speedup 3 --prompts prompts.txt --device cuda
  diffaccel tune flux-digits --psnr 45 -o choice.json
  diffaccel generate "a red 7 on a white background" --method auto:choice=choice.json
"""
TRAIN_DOT_EXAMPLES = """\
examples:
  diffaccel train-dot ./my-sd --data ./photographs --scheduler DDIMScheduler --guidance 2 10 -o dot --device cuda
  diffaccel train-dot dit-digits --data bundled --kind independent --m 1 --body '{"num_layers": 2}' -o dot
  the same command again continues a training that was stopped; then, with the steps that it was trained for:
    diffaccel generate "a fox in the snow" --model ./my-sd --method morse:dot=dot --steps 9
"""
STATISTICS_EXAMPLES = """\
examples:
  diffaccel statistics ./photographs -o photographs.npz --extractor inception --weights inception-2015-12-05.pt
  diffaccel evaluate --model ./my-flux --prompts prompts.txt --metrics fid --reference photographs.npz
"""
