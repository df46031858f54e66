"""What to write in place of an option that other programs have and this one spells otherwise."""


def _by_name(hints: dict[str, str]) -> dict[str, str]:
    """Return {an option's name: the hint}, of {the hint: the names that it is for}."""
    return {name: hint for hint, names in hints.items() for name in names.split()}


# Of `jaxllm train` and `jaxllm plan`: an option's name without its dashes -> the end of a sentence.
TRAIN_HINTS = _by_name({
    "the learning rate is --optim.learning-rate": "lr learning-rate max-lr base-lr peak-lr",
    "that is --optim.final-fraction, a fraction of --optim.learning-rate": "min-lr final-lr",
    "the optimizer is --optim.name": "optimizer optim opt",
    "the schedule is --optim.schedule":
        "schedule scheduler lr-scheduler lr-scheduler-type lr-schedule decay-lr",
    "the warmup is --optim.warmup-steps": "warmup warmup-steps warmup-iters num-warmup-steps",
    "the warmup is counted in steps: --optim.warmup-steps": "warmup-ratio",
    "weight decay is --optim.weight-decay": "weight-decay wd",
    "that is --optim.beta1": "beta1 adam-beta1",
    "that is --optim.beta2": "beta2 adam-beta2",
    "that is --optim.eps": "eps adam-epsilon",
    "the largest gradient norm is --optim.clip-norm":
        "clip grad-clip clip-grad clip-norm max-grad-norm gradient-clip-val",
    "dropout is --model.dropout": "dropout drop",
    "the number of layers is --model.num-layers":
        "layers num-layers n-layer n-layers depth num-hidden-layers",
    "the width is --model.embed-dim": "embed-dim n-embd d-model hidden-size hidden-dim width dim",
    "the number of heads is --model.num-heads": "heads num-heads n-head n-heads num-attention-heads",
    "the vocabulary is the tokenizer's, or --model.vocab-size": "vocab-size",
    "the length of a training sequence is --seq-len":
        "block-size context context-length ctx max-length max-len max-seq-length max-seq-len "
        "sequence-length seq-length",
    "the batch is --batch-size, in sequences over all devices":
        "bs batch global-batch-size per-device-train-batch-size per-device-batch-size "
        "micro-batch-size train-batch-size",
    "the parts that a batch is computed in are --accumulate, and --batch-size is all of them together":
        "gradient-accumulation-steps grad-accum grad-accum-steps accumulate-grad-batches",
    "a run is counted in --steps, and its first lines say how many epochs those are":
        "epochs epoch num-epochs num-train-epochs max-epochs n-epochs",
    "the length of a run is --steps":
        "max-steps num-steps iters max-iters num-iters iterations train-steps num-train-steps "
        "total-steps",
    "wandb and others take their numbers from Python: train(config, on_metrics=...), as README's "
    "'Train on your text' shows; --tensorboard writes them for TensorBoard":
        "wandb wandb-project wandb-log report-to use-wandb trackio mlflow logger",
    "jax takes all devices that it finds; CUDA_VISIBLE_DEVICES=0 or JAX_PLATFORMS=cpu in front of the "
    "command choose others; --mesh.data, --mesh.fsdp and --mesh.tensor split the work over them":
        "gpu gpus device devices cuda tpu num-gpus n-gpus num-devices cpu accelerator",
    "the types of numbers are --precision: float32, mixed_o1 (bfloat16 compute), mixed_o2 or bfloat16":
        "fp16 bf16 dtype amp mixed-precision half param-dtype use-bf16",
    "a step is always compiled; leave it out": "compile torch-compile jit",
    "--preset NAME trains such a model from scratch, and --start SOURCE goes on from its weights":
        "model model-name model-name-or-path pretrained init-from from-pretrained base-model "
        "checkpoint model-path arch architecture",
    "the same command with the same --out goes on where that ended; --restore RUN goes on from "
    "another's":
        "resume resume-from-checkpoint resume-from load continue auto-resume",
    "the folder of a run is --out":
        "output-dir out-dir save-dir output outdir log-dir checkpoint-dir run-dir name run-name",
    "the text is --data": "dataset train-data train-file data-path data-dir dataset-name input text corpus",
    "held-out text of your own is --valid-data; without it --valid-fraction of --data is held out":
        "val-data eval-data validation-file validation-data test-data eval-file val-file dev-data "
        "val-fraction val-split eval-fraction validation-split test-size",
    "the steps between evaluations are --eval-every":
        "eval-interval eval-steps val-every val-interval val-check-interval",
    "the batches of an evaluation are --eval-batches": "eval-iters eval-iterations val-batches",
    "the steps between checkpoints are --save-every":
        "save-steps save-interval checkpoint-every ckpt-every checkpoint-interval",
    "the checkpoints that are kept are --keep-last and --keep-best":
        "save-total-limit keep-checkpoints max-checkpoints save-best load-best-model-at-end",
    "there is no early stopping: --keep-best keeps the checkpoint that was evaluated best, and "
    "generate takes it with --checkpoint best":
        "patience early-stopping early-stop",
    "the steps between log lines are --log-every": "log-interval logging-steps log-steps",
    "the steps between samples are --sample-every": "sample samples sample-interval generate-every",
    "an adapter is --lora.rank, beside the model that --start gives":
        "lora lora-r lora-rank peft use-lora qlora adapter",
    "that is --lora.alpha": "lora-alpha",
    "that is --lora.dropout": "lora-dropout",
    "that is --lora.targets": "lora-targets lora-target-modules target-modules",
    "layers are computed again with --model.remat full":
        "gradient-checkpointing remat activation-checkpointing checkpoint-activations",
    "what the devices' memory does not hold goes to the host's with --offload": "cpu-offload zero deepspeed",
    "parameters are sharded by --mesh.fsdp": "fsdp",
    "matrices are split by --mesh.tensor": "tp tensor-parallel tensor-parallel-size",
    "processes find each other with --distributed": "ddp local-rank nnodes num-processes",
    "--no-progress leaves out the bar and the run's first lines": "quiet silent verbose disable-tqdm",
    "text is read and tokenised once, by as many threads as there are; leave it out":
        "num-workers workers num-proc dataloader-num-workers",
})  # fmt: skip

# Of the commands that read a model.
USE_HINTS = _by_name({
    "the length of an answer is --max-new-tokens":
        "max-tokens max-length max-len length n-predict num-tokens tokens n-tokens max-new-token",
    "the number of continuations is --samples":
        "num-samples num-return-sequences n num n-samples best-of sample",
    "the temperature is --temperature, and 0 is greedy": "temp t greedy do-sample sampling",
    "the model comes first, without a flag: jaxllm COMMAND MODEL":
        "model run model-name model-name-or-path pretrained model-path ckpt out-dir source start",
    "the numbers' type is --dtype: float32, bfloat16 or float16": "precision bf16 fp16 half",
    "jax takes all devices that it finds; CUDA_VISIBLE_DEVICES=0 or JAX_PLATFORMS=cpu in front of the "
    "command choose others":
        "gpu gpus device devices cuda tpu cpu",
    "an adapter is --adapter": "lora peft lora-path",
    "the file is --prompt-file, where - is the standard input":
        "file input input-file prompts prompts-file stdin f",
    "the file is --out": "output output-file save jsonl",
    "the strings to stop at are --stop": "stop-sequences stop-strings eos until",
    "a single continuation is always printed as it is drawn; leave it out": "stream streaming",
    "the repetition penalty is --repetition-penalty":
        "rep-penalty repeat-penalty frequency-penalty presence-penalty",
    "jaxllm chat MODEL --system TEXT says it first": "system system-prompt",
    "the text is --data": "dataset text",
})  # fmt: skip
