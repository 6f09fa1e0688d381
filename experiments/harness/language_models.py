"""Recipes of language models, for `experiments.train` and `experiments.plan`; the paper's figures have none."""

from bsjax.errors import check_choice
from experiments.harness import presets
from experiments.harness.config import Config
from experiments.harness.presets import Workload


def lengths(dataset_size: int, batch_size: int, num_updates: int, warmup: int, every: int) -> dict[str, float]:
    """The epochs of so many updates, with an evaluation, and ten log lines, every so many of them."""
    epochs = batch_size / dataset_size
    return {
        "num_epochs": num_updates * epochs,
        "warmup_epochs": warmup * epochs,
        "eval_every_epochs": every * epochs,
        "log_every_epochs": every / 10 * epochs,
    }


_ADAMW = Config().replace(
    task="language_model",
    model="transformer",
    optimizer="adamw",
    momentum=0.9,
    weight_decay=0.1,
    max_grad_norm=1.0,
    lr_schedule="cosine",
    lr_decay_epochs=(),
)
# 1,003,854 characters to train on, of which windows of 64 tokens predict 15,685 times 64, and windows of 256 3,921
# times 256.
_SHAKESPEARE = _ADAMW.replace(dataset="shakespeare", learning_rate=1e-3, b2=0.99, lr_end_factor=0.1)

LANGUAGE_MODELS = {
    # nanoGPT's setting for a CPU (https://github.com/karpathy/nanoGPT, its README), with rotary positions: it publishes
    # a validation loss of 1.88 after 2,000 updates.
    "shakespeare_cpu": Workload(
        _SHAKESPEARE.replace(
            context_length=64,
            model_depth=4,
            model_width=128,
            num_heads=4,
            batch_size=12,
            **lengths(15_685, 12, 2000, warmup=100, every=500),
        ),
        dataset_size=15_685,
    ),
    # nanoGPT's setting for a GPU (its config/train_shakespeare_char.py), with rotary positions; published: 1.4697, at
    # its best.
    "shakespeare": Workload(
        _SHAKESPEARE.replace(
            context_length=256,
            model_depth=6,
            model_width=384,
            num_heads=6,
            dropout=0.2,
            dtype="bfloat16",
            batch_size=64,
            **lengths(3_921, 64, 5000, warmup=100, every=250),
        ),
        dataset_size=3_921,
    ),
    # GPT-2 small, without biases, on ten billion tokens in batches of half a million, with the constants of llm.c's
    # reproduction (https://github.com/karpathy/llm.c). The size of the data set is nominal: the files decide.
    "gpt2_small": Workload(
        _ADAMW.replace(
            dataset="fineweb10B",
            context_length=1024,
            model_depth=12,
            model_width=768,
            num_heads=12,
            positions="learned",
            dtype="bfloat16",
            learning_rate=6e-4,
            b2=0.95,
            batch_size=512,
            **lengths(9_765_625, 512, 19_073, warmup=700, every=1000),
        ),
        dataset_size=9_765_625,
    ),
}
ALL: dict[str, Workload] = {**presets.PRESETS, **LANGUAGE_MODELS}


def get(name: str) -> Workload:
    """The preset of that name, of the figures or of a language model.

    Raises:
      InvalidArgument: there is none.
    """
    return ALL[check_choice("preset", name, ALL)]
