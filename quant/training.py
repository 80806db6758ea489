# SPDX-License-Identifier: Apache-2.0
"""Float training: one recipe for every network, from small images to photos.

SGD with Nesterov momentum, a triangular learning rate and smoothed labels. Colour images are
shifted and mirrored; grey ones (digits, letters) are learnt as they are, which in a few epochs
gave more (digits, VGG11 at a quarter of its width, three seeds: 99.1 instead of 98.5 %). At the
end the batch norms' statistics are measured anew, because few short epochs leave their averages
behind.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from quant.convolution import fast_convolutions
from quant.data import DataSet, Split, to_input
from quant.models import ModelSpec, seeded
from trilat.errors import InputError
from trilat.progress import NoProgress, Progress

SMALL = 5000  # images; smaller sets need more steps per image
BATCH, BATCH_SMALL = 64, 32
PEAK_RATE, PEAK_RATE_PLAIN = 0.04, 0.06  # with batch norm, and without
PEAK_RATE_DEPTHWISE = (
    0.12  # MobileNetV2 at a quarter of its width learns little of the digits below
)
WARM_UP = 0.25  # of all steps, up to the peak of the learning rate
MOMENTUM = 0.9
WEIGHT_DECAY = 5e-4
LABEL_SMOOTHING = 0.1
GRADIENT_NORM = 2.0  # above it gradients are scaled down
STATISTICS_IMAGES = 2048  # from which batch norms are measured at the end
EVALUATION_BATCH = 128


def default_epochs(data: DataSet) -> int:
    """Epochs that train well in little time: photos need more passes, few of them still more."""
    if data.shape[0] == 1:
        return 4
    return 30 if len(data.train) < SMALL else 15


def train_float(
    spec: ModelSpec,
    data: DataSet,
    *,
    seed: int,
    epochs: int | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Train `spec.module` in place on `data.train`; it ends in eval mode, on the CPU, in float32.

    On one machine with one number of threads, the seed decides every weight. Runs on CUDA where
    torch has it, and in bfloat16 on CPUs with AMX; the weights stay float32.

    Args:
        spec: what to train.
        data: its train split is learnt, its val split is measured once, at the end.
        seed: of order, augmentation and dropout.
        epochs: None for `default_epochs`.
        progress: where it reports, by images.

    Returns:
        JSON-able: epochs, peak_rate, history (per epoch: epoch, loss over smoothed
        labels, train_accuracy in percent, seconds), seconds, val_accuracy in percent.

    Raises:
        InputError: the loss became infinite or NaN.
    """
    progress = progress or NoProgress()
    epochs = epochs or default_epochs(data)
    start = time.monotonic()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    module = spec.module.to(device)
    peak = _peak_rate(module)
    optimizer = torch.optim.SGD(
        _parameter_groups(module), lr=peak, momentum=MOMENTUM, nesterov=True, fused=True
    )
    steps = epochs * _batch_count(len(data.train))
    step = 0
    history = []
    with (
        seeded(seed),
        fast_convolutions(module),
        progress.task(f"train {spec.name}", epochs * len(data.train)) as advance,
        torch.backends.cudnn.flags(deterministic=True, benchmark=False),
    ):
        for epoch in range(1, epochs + 1):
            module.train()
            began, loss_sum, correct = time.monotonic(), 0.0, 0
            for images, labels in train_batches(data, spec.input_shape, seed=seed, epoch=epoch):
                for group in optimizer.param_groups:
                    group["lr"] = peak * triangle((step + 1) / (steps + 1))
                images, labels = images.to(device), labels.to(device)
                with _fast_arithmetic(device):
                    logits = module(images)
                loss = functional.cross_entropy(
                    logits.float(), labels, label_smoothing=LABEL_SMOOTHING
                )
                if not torch.isfinite(loss):
                    raise InputError(
                        f"training {spec.name} diverges in epoch {epoch} (loss {loss.item()}); "
                        "the network needs batch norm or smaller initial weights"
                    )
                optimizer.zero_grad()
                loss.backward()
                nn.utils.clip_grad_norm_(module.parameters(), GRADIENT_NORM)
                optimizer.step()
                step += 1
                loss_sum += loss.item() * len(labels)
                correct += int((logits.argmax(1) == labels).sum())
                advance(len(labels))
            history.append(
                {
                    "epoch": epoch,
                    "loss": loss_sum / len(data.train),
                    "train_accuracy": 100 * correct / len(data.train),
                    "seconds": time.monotonic() - began,
                }
            )
        _measure_batch_norms(spec, data, device, seed)
    module.to("cpu").eval()
    return {
        "epochs": epochs,
        "peak_rate": peak,
        "history": history,
        "val_accuracy": float_accuracy(spec, data, data.val),
        "seconds": time.monotonic() - start,
    }


def float_accuracy(spec: ModelSpec, data: DataSet, split: Split) -> float:
    """Return the top-1 accuracy of `spec.module` on a split of `data`, in percent, in float32.

    Evaluated on the CPU in eval mode; ties go to the lowest class.
    """
    spec.module.eval()
    correct = 0
    with torch.inference_mode():
        for first in range(0, len(split), EVALUATION_BATCH):
            part = slice(first, first + EVALUATION_BATCH)
            x = to_input(split.images[part], spec.input_shape, data.mean, data.std)
            top = spec.module(x).numpy().argmax(1)
            correct += int((top == split.labels[part]).sum())
    return 100 * correct / len(split)


def train_batches(
    data: DataSet, input_shape: tuple[int, int, int], *, seed: int, epoch: int
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yield one epoch of training batches of nearly one size, in random order, colour augmented.

    Yields:
        float32 (n, C, H, W), normalized, and int64 (n,).
    """
    rng = np.random.default_rng([seed, epoch])
    order = rng.permutation(len(data.train))
    # Nearly equal parts: a last batch of one image would break batch norm.
    for part in np.array_split(order, _batch_count(len(order))):
        x = to_input(data.train.images[part], input_shape, data.mean, data.std)
        if data.shape[0] == 3:  # mirrored photos are photos; mirrored digits are not digits
            x = augment(x, rng)
        yield x, torch.from_numpy(data.train.labels[part])


def augment(x: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
    """Shift each image by up to an eighth of its size, edges repeated, and mirror half of them.

    Args:
        x: (N, C, H, W).
        rng: source of shifts and mirrors.
    """
    count, channels, height, width = x.shape
    down = rng.integers(-(height // 8), height // 8 + 1, (count, 1))
    right = rng.integers(-(width // 8), width // 8 + 1, (count, 1))
    rows = np.clip(np.arange(height) + down, 0, height - 1)
    columns = np.clip(np.arange(width) + right, 0, width - 1)
    columns = np.where(rng.random((count, 1)) < 0.5, width - 1 - columns, columns)
    return x[
        torch.arange(count)[:, None, None, None],
        torch.arange(channels)[None, :, None, None],
        torch.from_numpy(rows)[:, None, :, None],
        torch.from_numpy(columns)[:, None, None, :],
    ]


def triangle(done: float) -> float:
    """Return the learning rate over its peak after the share `done` of training, 0..1."""
    return done / WARM_UP if done < WARM_UP else (1 - done) / (1 - WARM_UP)


def _batch_count(images: int) -> int:
    return max(1, round(images / (BATCH_SMALL if images < SMALL else BATCH)))


def _peak_rate(module: nn.Module) -> float:
    if not _batch_norms(module):
        return PEAK_RATE_PLAIN
    depthwise = any(isinstance(m, nn.Conv2d) and m.groups > 1 for m in module.modules())
    return PEAK_RATE_DEPTHWISE if depthwise else PEAK_RATE


def _batch_norms(module: nn.Module) -> list[nn.BatchNorm2d]:
    return [m for m in module.modules() if isinstance(m, nn.BatchNorm2d)]


def _parameter_groups(module: nn.Module) -> list[dict[str, Any]]:
    """Weight decay for matrices and kernels; none for biases and batch norms."""
    weights = [p for p in module.parameters() if p.ndim > 1]
    others = [p for p in module.parameters() if p.ndim <= 1]
    return [
        {"params": weights, "weight_decay": WEIGHT_DECAY},
        {"params": others, "weight_decay": 0.0},
    ]


def _fast_arithmetic(device: torch.device) -> contextlib.AbstractContextManager[Any]:
    """Autocast to bfloat16 where the CPU multiplies it faster; else nothing."""
    if device.type == "cpu" and torch.cpu.get_capabilities().get("amx_bf16"):
        return torch.autocast("cpu", dtype=torch.bfloat16)
    return contextlib.nullcontext()


def _measure_batch_norms(spec: ModelSpec, data: DataSet, device: torch.device, seed: int) -> None:
    """Set the running statistics of batch norms to those of training images as they are."""
    norms = _batch_norms(spec.module)
    if not norms:
        return
    momenta = [norm.momentum for norm in norms]
    spec.module.eval()
    for norm in norms:
        norm.train()
        norm.reset_running_stats()
        norm.momentum = None  # the plain average over what follows
    order = np.random.default_rng(seed).permutation(len(data.train))[:STATISTICS_IMAGES]
    with torch.no_grad():
        for part in np.array_split(order, max(1, len(order) // 256)):
            x = to_input(data.train.images[part], spec.input_shape, data.mean, data.std)
            spec.module(x.to(device))
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    spec.module.eval()
