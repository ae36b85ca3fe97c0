"""The one training loop: a model, its loss and a source of batches go in; weights, curves and a run to go on come out.

A batch is a function of the step alone, and so is whatever is random: (seed, step) says it all. Hence a run's position
is one number, and a run that was killed goes on as if nothing had happened, to the bit on a CPU.
"""

import contextlib
import copy
import json
import math
import re
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import nn

from lib import checkpoint, fsdp
from lib.journal import Journal, Watch
from lib.muon import Muon
from lib.place import Place
from lib.stop import Stop

MATRICES = re.compile(r"(^|\.)(attn|mlp)\w*\.")  # names of parameters that Muon takes, where they are matrices
OVERDUE = 600.0  # seconds after which a checkpoint is written in any case
PATIENCE = 10  # steps in a row without a finite gradient, then it is over


class Trained(NamedTuple):
    """What a run comes to."""

    model: nn.Module  # with the averaged (EMA) weights, ready to use
    step: int
    seconds: float  # of training, over all sessions
    waiting: float  # share of this session's time in which the model waited for batches
    peak_gib: float  # of GPU memory
    pace: float  # seconds a step, the median of this session


@dataclass
class Run:
    """All that changes from step to step: what a checkpoint holds."""

    model: nn.Module
    ema: nn.Module
    optimisers: list
    step: int = 0
    seconds: float = 0.0
    sums: dict = field(default_factory=dict)  # of the loss's terms since the last row of the curve, and how many: n
    skipped: int = 0  # steps in a row without a finite gradient

    def note(self, terms: dict) -> None:
        for name, value in (terms | {"n": 1}).items():
            self.sums[name] = self.sums.get(name, 0) + value

    def state(self) -> dict:
        return {
            "step": self.step,
            "seconds": self.seconds,
            "skipped": self.skipped,
            "sums": {name: float(value) for name, value in self.sums.items()},
            "model": self.model.state_dict(),
            "ema": self.ema.state_dict(),
            "optimisers": [optimiser.state_dict() for optimiser in self.optimisers],
        }

    def restore(self, state: dict) -> None:
        for name in ("step", "seconds", "sums", "skipped"):
            setattr(self, name, state[name])
        fsdp.load(self.model, state["model"])
        fsdp.load(self.ema, state["ema"])
        for optimiser, saved in zip(self.optimisers, state["optimisers"], strict=True):
            optimiser.load_state_dict(fsdp.spread(saved, optimiser))


def train(
    model: nn.Module,
    loss: Callable,  # loss(model, batch) -> {"loss": what is made small, and its terms by name}, means over the batch
    batch: Callable,  # batch(step, samples: range) -> dict; the same whenever it is asked, see `deal`
    folder: str | Path,  # <run>/<stage>
    made_with: dict,  # what else the result depends on, in JSON's types: a run that differs is not gone on with
    *,
    steps: int,
    batch_size: int = 8,  # samples a step, over all processes
    optimiser: str = "muon",  # with AdamW for what is no matrix of attention or MLP; or "adamw" for all
    lr: float = 5e-3,  # of Muon
    adam_lr: float = 3e-3,  # of AdamW
    betas: tuple[float, float] = (0.9, 0.99),
    eps: float = 1e-8,
    weight_decay: float = 0.01,
    warmup: int = 50,  # steps
    floor: float = 0.02,  # share of the rate that the cosine ends at; 1 = constant
    clip: float = 1.0,  # of the gradient's norm, 0 = none
    ema: float = 0.995,  # share of the average that a step leaves; less in the first steps
    accumulate: int = 1,  # pieces that a batch is worked off in
    seed: int = 0,
    device: str = "cpu",
    compiled: bool = False,  # torch.compile, on cuda
    sharded: bool = False,  # each process keeps a share of the weights and of all that belongs to them, not a copy
    workers: int = 2,  # threads that make batches ahead
    validate: Callable | None = None,  # validate(model, step) -> numbers and pictures (h, w, 3) uint8 by name
    validate_every: int = 0,  # steps, 0 = only at the end
    save_every: int = 0,  # steps between checkpoints, 0 = a tenth of all
    keep: int = 2,  # checkpoints
    log_every: int = 0,  # steps a row of the curve, 0 = a 400th of all
    fresh: bool = False,  # replace a run that was made otherwise, instead of refusing
) -> Trained:
    """Train until `steps`, from where the folder's last checkpoint stands. The same call goes on after any end."""
    recipe = {name: value for name, value in locals().items() if name in RECIPE}
    wanted = json.loads(json.dumps(made_with | recipe))
    folder = Path(folder)
    place = Place.here(device)
    if batch_size % (place.world * accumulate):
        raise ValueError(
            f"batch_size = {batch_size} cannot be shared by {place.world} processes x accumulate = {accumulate}; "
            "wanted a multiple of their product"
        )
    save_every, log_every = save_every or -(-steps // 10), log_every or min(-(-steps // 400), 50)
    sharded = sharded and place.world > 1
    model = model if sharded else model.to(place.device)
    template = copy.deepcopy(model) if sharded else None  # stays in memory, and is filled when a whole one is wanted
    average = copy.deepcopy(model).eval().requires_grad_(False)
    stepper = Stepper(model, loss)
    if compiled and place.on_gpu:
        compile_blocks(model)
    if sharded:
        stepper, average = fsdp.share(stepper, place), fsdp.share(average, place)
    elif place.world > 1:
        stepper = nn.parallel.DistributedDataParallel(stepper)
    run = Run(model, average, optimisers(model, **recipe))

    def finished() -> nn.Module:
        """The average, whole on every process."""
        return fsdp.filled(template, fsdp.whole(average.state_dict()), place.device) if sharded else average

    def make(step: int) -> list[dict]:
        """This process's share of a step's samples, in as many pieces as are accumulated."""
        part = batch_size // (place.world * accumulate)
        first = step * batch_size + place.rank * part * accumulate
        pieces = [batch(step, range(first + k * part, first + (k + 1) * part)) for k in range(accumulate)]
        return [pinned(piece) for piece in pieces] if place.on_gpu else pieces

    with contextlib.ExitStack() as stack:
        if place.first:
            stack.enter_context(checkpoint.claim(folder))
        place.wait()
        state = checkpoint.settle(folder, wanted, fresh, place, in_memory=sharded)
        if state:
            run.restore(state)
        journal = stack.enter_context(Journal(folder, run.step, place.first))
        stop = stack.enter_context(Stop())
        watch, saved = Watch(run.step, run.seconds), run.seconds

        def examine() -> None:
            due = run.step == steps or (run.step and validate_every and run.step % validate_every == 0)
            if not validate or not due:
                return
            average = finished()  # all processes take part, if it takes several to make one
            if place.first and not journal.has(run.step):
                with torch.no_grad(), watch.pause():
                    journal.validation(run.step, validate(average, run.step))

        if state:
            journal.say(f"goes on from step {run.step:,}")
            examine()  # the run may have been killed between checkpoint and validation
        source = stack.enter_context(contextlib.closing(ahead(make, range(run.step, steps), workers)))
        for pieces in watch.waiting(source):
            rate = schedule(run.step, steps, warmup, floor)
            terms, norm = forward_backward(stepper, pieces, place, seed, run.step, clip, run.model)
            if math.isfinite(norm):
                update(run, rate, ema)
                run.note(terms | {"norm": norm})
            run.skipped = 0 if math.isfinite(norm) else run.skipped + 1
            run.step, run.seconds = run.step + 1, watch.seconds
            if run.skipped:
                give_up(journal, run, terms)
            if run.sums and (run.step % log_every == 0 or run.step == steps):
                journal.curve({"step": run.step} | place.mean(run.sums) | {"rate": rate})
                run.sums = {}
            if watch.tells() or run.step == steps:
                journal.progress(run.step, steps, watch.speed(run.step), batch_size, watch.share)
            stopping, overdue = place.any(bool(stop.reason), watch.seconds - saved > OVERDUE)
            if run.step % save_every == 0 or run.step == steps or stopping or overdue:
                saved = watch.seconds
                state = run.state() | {"sums": place.average(run.sums), "made_with": wanted}
                state = fsdp.whole(state, keep=place.first) if sharded else state
                checkpoint.save(folder, run.step, state, keep, place)
            if stopping and run.step < steps:
                journal.say(f"stopped at step {run.step:,} by {stop.reason or 'another process'}")
                raise KeyboardInterrupt(f"{folder} stopped at step {run.step}. The same command goes on from here.")
            examine()
        place.wait()
    return Trained(finished(), run.step, run.seconds, watch.share, place.peak_gib(), watch.pace)


RECIPE = (
    *("steps", "batch_size", "optimiser", "lr", "adam_lr", "betas", "eps", "weight_decay"),
    *("warmup", "floor", "clip", "ema", "seed"),
)  # arguments of `train` that the result depends on


# -- a step -----------------------------------------------------------------------------------------------------------


class Stepper(nn.Module):
    """The loss as a module: what DDP takes hold of."""

    def __init__(self, model: nn.Module, loss: Callable):
        super().__init__()
        self.model, self.loss = model, loss

    def forward(self, batch: dict) -> dict:
        return self.loss(self.model, batch)


def compile_blocks(model: nn.Module) -> None:
    """Compile what a model repeats: once for all, in a tenth of the time that the whole would take."""
    for layers in [part for part in model.modules() if isinstance(part, nn.ModuleList)]:
        for layer in layers:
            layer.compile()


def forward_backward(stepper, pieces: list[dict], place: Place, seed: int, step: int, clip: float, model):
    """Gradients of a batch, clipped: the mean of each term of the loss, and the norm before clipping."""
    model.train()
    model.zero_grad(set_to_none=True)
    terms: dict[str, float] = {}
    for number, piece in enumerate(pieces):
        torch.manual_seed(seeded(seed, step, place.rank, number))
        last = number == len(pieces) - 1
        with (
            fsdp.alone(stepper) if not last and place.world > 1 else contextlib.nullcontext(),
            torch.autocast("cuda", torch.bfloat16, enabled=place.on_gpu),
        ):
            found = stepper(moved(piece, place.device))
            (found["loss"] / len(pieces)).backward()
        for name, value in found.items():
            terms[name] = terms.get(name, 0.0) + torch.as_tensor(value).detach().double() / len(pieces)
    weights = [weight for weight in model.parameters() if weight.grad is not None]
    norm = nn.utils.clip_grad_norm_(weights, clip or math.inf, foreach=True)
    return terms, float(fsdp.whole(norm))


def update(run: Run, rate: float, ema: float) -> None:
    """The optimisers' step, and the average's."""
    for optimiser in run.optimisers:
        for group in optimiser.param_groups:
            group["lr"] = group["peak"] * rate
        optimiser.step()
    share = 1 - min(ema, (1 + run.step) / (10 + run.step))
    with torch.no_grad():
        torch._foreach_lerp_(fsdp.local(run.ema.parameters()), fsdp.local(run.model.parameters()), share)
        for average, value in zip(run.ema.buffers(), run.model.buffers(), strict=True):
            average.copy_(value)


def optimisers(model: nn.Module, optimiser: str, lr, adam_lr, betas, eps, weight_decay, **_) -> list:
    """Muon for the matrices of attention and MLP, AdamW for the rest; vectors do not decay."""
    if optimiser not in ("muon", "adamw"):
        raise ValueError(f"optimiser = {optimiser!r}; wanted 'muon' or 'adamw'")
    named = [(name, weight) for name, weight in model.named_parameters() if weight.requires_grad]
    chosen = {name for name, weight in named if optimiser == "muon" and weight.ndim == 2 and MATRICES.search(name)}
    rest = [weight for name, weight in named if name not in chosen]
    groups = [
        {"params": [weight for weight in rest if (weight.ndim > 1) == decays], "weight_decay": decays * weight_decay}
        for decays in (True, False)
    ]
    made = [torch.optim.AdamW([group for group in groups if group["params"]], adam_lr, tuple(betas), eps, fused=True)]
    if chosen:
        made.insert(0, Muon([weight for name, weight in named if name in chosen], lr, weight_decay=weight_decay))
    for one in made:
        for group in one.param_groups:
            group["peak"] = group["lr"]
    return made


def schedule(step: int, steps: int, warmup: int, floor: float) -> float:
    """Share of the peak rate: a straight line up, half a cosine down to the floor."""
    rise = min(1.0, (step + 1) / max(warmup, 1))
    along = min(1.0, max(0.0, (step - warmup) / max(steps - warmup, 1)))
    return rise * (floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * along)))


def give_up(journal: Journal, run: Run, terms: dict) -> None:
    """A step without a finite gradient is left out; too many in a row end the run, and the checkpoints stay."""
    told = ", ".join(f"{name} {float(value):.4g}" for name, value in terms.items())
    journal.say(f"step {run.step:,}: the gradient is not finite ({told}); left out, {run.skipped} in a row")
    if run.skipped >= PATIENCE:
        raise FloatingPointError(
            f"{journal.folder}: no finite gradient in {run.skipped} steps up to {run.step} ({told}). Look for such "
            "numbers in the data, or train with a lower lr, in another run folder or with fresh = true."
        )


# -- batches ----------------------------------------------------------------------------------------------------------


def deal(samples: Iterable[int], count: int, seed: int) -> list[int]:
    """Which of `count` items each sample of a run is: every item once an epoch, in an order of the epoch's own.

    It does not ask how many processes there are: the run goes on with more or fewer, and no item is dealt twice.
    """
    return [int(shuffled(count, seed, sample // count)[sample % count]) for sample in samples]


@lru_cache(4)
def shuffled(count: int, seed: int, epoch: int) -> np.ndarray:
    return np.random.default_rng([seed, epoch]).permutation(count)


def seeded(*numbers: int) -> int:
    """A seed from several numbers."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> 1)


def ahead(make: Callable, steps: Iterable[int], workers: int) -> Iterator:
    """make(step) of each step in order, made by threads before it is asked for.

    The first is made alone: where several threads of a new process call torch's sin or exp for the first time at once,
    one in some hundred processes gets other last bits.
    """
    threads, waiting = ThreadPoolExecutor(max(workers, 1)), deque()
    try:
        for number, step in enumerate(steps):
            waiting.append(threads.submit(make, step))
            if number == 0:
                wait(waiting)
            if len(waiting) > workers + 1:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        threads.shutdown(cancel_futures=True)


def moved(batch: dict, device: torch.device) -> dict:
    """A batch on the device; what is no tensor stays as it is."""
    return {k: v.to(device, non_blocking=True) if torch.is_tensor(v) else v for k, v in batch.items()}


def pinned(batch: dict) -> dict:
    """Tensors where the GPU can fetch them while it works."""
    return {k: v.pin_memory() if torch.is_tensor(v) else v for k, v in batch.items()}
