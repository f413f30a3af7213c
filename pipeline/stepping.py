"""One training step: forward, backward, clip, update, average. On a GPU it is recorded once and replayed.

These networks are many small kernels: started one by one from Python they keep a large GPU busy a tenth of the time.
"""

from collections import deque
from dataclasses import fields

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline import losses
from pipeline.checkpoint import Trainee
from pipeline.errors import PipelineError
from pipeline.experiment import Experiment
from pipeline.models.assembly import slower_parts
from pipeline.models.layers import short_floats
from pipeline.models.split_segmenter import SplitSegmenter, upsample
from pipeline.views import Batch

# What a step returns, in this order.
TERMS = ("segmentation", "lovasz", "distillation", "squared_error", "rate_bpp", "gradient_norm")
_CHECK_LATER = 8  # steps
_EAGER_STEPS = 3  # before recording: libraries choose their kernels, the optimiser makes its state


class TrainingDiverged(PipelineError):
    """A gradient is not finite; the text names the parameter."""


def optimiser_of(network: SplitSegmenter, experiment: Experiment) -> torch.optim.AdamW:
    """AdamW, parts that learn slower in groups of their own; vectors (biases, batch norms) and gains do not decay."""
    device = next(network.parameters()).device
    slow = {id(p) for part in slower_parts(network) for p in part.parameters()}
    learning = [p for p in network.parameters() if p.requires_grad]
    groups = []
    for slower in (True, False):
        peak = experiment.schedule.backbone_lr if slower else experiment.schedule.lr
        for decays in (True, False):
            chosen = [p for p in learning if (id(p) in slow) == slower and _decays(p) == decays]
            decay = experiment.schedule.weight_decay if decays else 0.0
            groups.append({"params": chosen, "peak": peak, "weight_decay": decay, "lr": torch.zeros((), device=device)})
    on_gpu = device.type == "cuda"
    return torch.optim.AdamW([g for g in groups if g["params"]], fused=on_gpu, capturable=on_gpu)


def _decays(parameter: Tensor) -> bool:
    return parameter.ndim == 4


class Step:
    """Trains the network of a trainee by one batch at a time; batches must all have the same shapes."""

    def __init__(self, trainee: Trainee, experiment: Experiment, class_weights: Tensor) -> None:
        self._trainee = trainee
        self._experiment = experiment
        self._class_weights = class_weights
        device = class_weights.device
        self._rate_weights = torch.tensor(experiment.loss.rate, device=device)
        self._rise, self._share = torch.ones((), device=device), torch.ones((), device=device)
        self._taken = 0
        self._unchecked: deque[Tensor] = deque()
        self._graph: torch.cuda.CUDAGraph | None = None

    def __call__(self, batch: Batch, *, learning: float, rise: float, decay: float) -> Tensor:
        """One step; returns what TERMS names (6,): cross entropy, Lovasz terms, distillation, squared error, bits per
        pixel, norm of the gradient.

        `learning` is the share of the peak learning rates, `rise` that of the rate's weight, `decay` the average's.
        Raises TrainingDiverged when a gradient is not finite.
        """
        for group in self._trainee.optimiser.param_groups:
            group["lr"].fill_(learning * group["peak"])
        self._rise.fill_(rise)
        self._share.fill_(1 - decay)
        logged = self._run(batch) if self._class_weights.is_cuda else self._step(batch)
        self._unchecked.append(logged[-1])
        if len(self._unchecked) > _CHECK_LATER:  # a norm that is not there yet would keep the GPU waiting for Python
            self._check(self._unchecked.popleft())
        return logged

    def settle(self) -> None:
        """Look at the norms that were not looked at yet; raises TrainingDiverged."""
        while self._unchecked:
            self._check(self._unchecked.popleft())

    def _run(self, batch: Batch) -> Tensor:
        """A step on a GPU: on a side stream at first, as recording wants it; then recorded and replayed."""
        self._taken += 1
        if self._taken <= _EAGER_STEPS:
            side = torch.cuda.Stream()
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):
                logged = self._step(batch)
            torch.cuda.current_stream().wait_stream(side)
            return logged
        if self._graph is None:
            self._inputs = Batch(batch.images.clone(), batch.labels.clone(), _clone(batch.soft), batch.quality.clone())
            self._graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self._graph):
                self._logged = self._step(self._inputs)
        for field in fields(Batch):
            old, new = getattr(self._inputs, field.name), getattr(batch, field.name)
            if old is not None:
                old.copy_(new)
        self._graph.replay()
        return self._logged.clone()

    def _step(self, batch: Batch) -> Tensor:
        network, optimiser, settings = self._trainee.network, self._trainee.optimiser, self._experiment
        terms = self._losses(batch)
        loss = (
            settings.loss.labels * terms.segmentation
            + settings.loss.lovasz * terms.lovasz
            + settings.teacher.weight * terms.distillation
            + settings.teacher.lovasz * terms.taught_lovasz
            + settings.loss.pixels * terms.distortion
            + self._rise * terms.rate
        )
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        # Norm first, scaling after: scaling by a norm that is not a number would spoil every other gradient too.
        norm = nn.utils.get_total_norm([p.grad for p in network.parameters() if p.grad is not None])
        if not norm.is_cuda:
            self._check(norm)
        nn.utils.clip_grads_with_norm_(network.parameters(), settings.schedule.clip_norm, norm)
        optimiser.step()
        self._update_average()
        lovasz = terms.lovasz + terms.taught_lovasz
        logged = (terms.segmentation, lovasz, terms.distillation, terms.squared_error, terms.rate_bpp, norm)
        return torch.stack([term.detach() for term in logged])

    def _losses(self, batch: Batch) -> losses.Losses:
        images = batch.images.contiguous(memory_format=torch.channels_last)
        with short_floats(images.device):
            seen = self._trainee.network(images, batch.quality)
        # Plane by plane: what follows would else be copied into that order, at the size of the picture.
        output, settings = seen.output.float().contiguous(), self._experiment.loss
        segmentation = lovasz = soft_term = taught_lovasz = squared_error = distortion = output.new_zeros(())
        if settings.labels > 0:
            height, width = batch.labels.shape[-2:]
            full = upsample(output, height, width)
            segmentation = losses.segmentation(full, batch.labels, self._class_weights)
        if settings.lovasz > 0:
            sparse = F.interpolate(batch.labels[:, None], output.shape[-2:], mode="nearest-exact")[:, 0]
            lovasz = losses.lovasz_softmax(output, sparse)
        if batch.soft is not None:
            at_soft = F.interpolate(output, batch.soft.shape[-2:], mode="bilinear", align_corners=False)
            sharpness = self._experiment.teacher.sharpness
            soft_term = losses.distillation(at_soft, batch.soft, self._class_weights, sharpness=sharpness)
            if self._experiment.teacher.lovasz > 0:
                guessed = losses.likeliest(batch.soft, (output.shape[-2], output.shape[-1]))
                taught_lovasz = losses.lovasz_softmax(output, guessed)
        bpp = losses.rate_bpp(seen.coded, batch.labels[0].numel())  # (B,)
        weights = self._rate_weights[batch.quality]
        if settings.pixels > 0:
            # Divided by the weights, so that a bit counts alike at each level: they are so far apart that the entropy
            # model would learn the lowest rate alone, and symbols of the highest run away where no bits tell of them.
            errors = losses.squared_error(output, batch.images)
            squared_error, distortion, rate = errors.mean(), (errors / weights).mean(), bpp.mean()
        else:
            rate = (weights * bpp).mean()
        return losses.Losses(
            segmentation, lovasz, soft_term, taught_lovasz, squared_error, distortion, rate=rate, rate_bpp=bpp.mean()
        )

    @torch.no_grad()
    def _update_average(self) -> None:
        pairs = zip(
            self._trainee.average.state_dict().values(), self._trainee.network.state_dict().values(), strict=True
        )
        means, news = zip(*((mean, new) for mean, new in pairs if mean.is_floating_point()), strict=True)
        apart = torch._foreach_sub(news, means)
        torch._foreach_mul_(apart, self._share)
        torch._foreach_add_(means, apart)

    def _check(self, norm: Tensor) -> None:
        if not norm.isfinite():
            named = self._trainee.network.named_parameters()
            bad = [name for name, p in named if p.grad is not None and not p.grad.isfinite().all()]
            raise TrainingDiverged(f"the gradient of {(bad or ['the norm'])[0]} is not finite; lower the learning rate")


def _clone(soft: Tensor | None) -> Tensor | None:
    return None if soft is None else soft.clone()
