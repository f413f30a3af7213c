"""One training step: which parameters learn how fast, what the loss is made of, what is averaged, what is refused."""

from copy import deepcopy
from dataclasses import replace

import pytest
import tiny
import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline import losses
from pipeline.checkpoint import Trainee
from pipeline.experiment import Experiment
from pipeline.models.assembly import pretrained
from pipeline.models.layers import short_floats
from pipeline.models.split_segmenter import SplitSegmenter, upsample
from pipeline.stepping import Step, TrainingDiverged, optimiser_of
from pipeline.training import build
from pipeline.views import Batch

WEIGHTS = torch.linspace(0.5, 1.5, tiny.CLASSES)
SPOILT = "decoder.lift.0.weight"


@pytest.fixture(scope="module")
def settled() -> SplitSegmenter:
    """Untrained, its batch norms settled; copied for each trainee."""
    torch.manual_seed(0)
    network = build(tiny.experiment(), tiny.CLASSES)
    tiny.settle_batch_norms(network, tiny.images(tiny.scenes(8)))
    return network


def trainee(settled: SplitSegmenter, experiment: Experiment) -> Trainee:
    network = deepcopy(settled)
    return Trainee(network.train(), deepcopy(network).eval().requires_grad_(False), optimiser_of(network, experiment))


def batch(*, soft: bool = False, quality: tuple[int, ...] = (0, 1, 2, 1)) -> Batch:
    scenes = tiny.scenes(4)
    labels = torch.stack([torch.from_numpy(one.labels) for one in scenes])
    probabilities = None
    if soft:
        classes = labels.long().where(labels != tiny.VOID, 0)[:, ::2, ::2]
        probabilities = 0.8 * F.one_hot(classes, tiny.CLASSES).permute(0, 3, 1, 2).float() + 0.2 / tiny.CLASSES
    return Batch(tiny.images(scenes), labels, probabilities, torch.tensor(quality))


def one_step(
    made: Trainee,
    experiment: Experiment,
    shown: Batch,
    *,
    learning: float = 1.0,
    rise: float = 1.0,
    decay: float = 0.9,
) -> Tensor:
    torch.manual_seed(5)
    return Step(made, experiment, WEIGHTS)(shown, learning=learning, rise=rise, decay=decay)


def learning(settled: SplitSegmenter) -> dict[str, Tensor]:
    """The parameters that a step changes."""
    return {name: p for name, p in settled.named_parameters() if p.requires_grad}


def rates_of(settled: SplitSegmenter, experiment: Experiment) -> dict[str, tuple[float, float]]:
    """Peak learning rate and weight decay of each parameter."""
    named = {id(p): name for name, p in settled.named_parameters()}
    groups = optimiser_of(settled, experiment).param_groups
    return {named[id(p)]: (group["peak"], group["weight_decay"]) for group in groups for p in group["params"]}


@pytest.mark.parametrize("decay", [0.02, 0.0])
def test_every_parameter_is_in_one_group(settled: SplitSegmenter, decay: float) -> None:
    experiment = tiny.experiment(schedule={"weight_decay": decay})
    listed = [id(p) for group in optimiser_of(settled, experiment).param_groups for p in group["params"]]
    assert sorted(listed) == sorted(id(p) for p in learning(settled).values())


def test_what_does_not_learn_is_in_no_group(settled: SplitSegmenter) -> None:
    network = deepcopy(settled)
    network.analysis.requires_grad_(False)
    network.prior.requires_grad_(False)
    rates = rates_of(network, tiny.experiment())
    assert rates.keys() == {name for name in learning(settled) if name.startswith("decoder.")}
    assert {peak for peak, _ in rates.values()} == {1e-3}


def test_pretrained_parts_learn_at_their_own_rate(settled: SplitSegmenter) -> None:
    slow = {id(p) for part in pretrained(settled) for p in part.parameters()}
    rates = rates_of(settled, tiny.experiment(schedule={"backbone_lr": 1e-5, "lr": 1e-3}))
    for name, parameter in learning(settled).items():
        assert rates[name][0] == (1e-5 if id(parameter) in slow else 1e-3)
    assert rates["analysis.backbone.stem.0.weight"][0] == 1e-5


def test_an_image_codecs_transforms_move_slower_than_its_entropy_model() -> None:
    loss = {"labels": 0.0, "lovasz": 0.0, "pixels": 0.01}
    experiment = tiny.experiment(
        model={"decoder": "image"}, loss=loss, schedule={"backbone_lr": 1e-5, "lr": 1e-3, "weight_decay": 0.0}
    )
    rates = rates_of(build(experiment, tiny.CLASSES), experiment)
    assert {name.split(".")[0] for name, (rate, _) in rates.items() if rate == 1e-5} == {"analysis", "decoder"}
    assert {name.split(".")[0] for name, (rate, _) in rates.items() if rate == 1e-3} == {"prior"}


def test_kernels_decay_and_vectors_and_gains_do_not(settled: SplitSegmenter) -> None:
    rates = rates_of(settled, tiny.experiment(schedule={"weight_decay": 0.02}))
    for name, parameter in learning(settled).items():
        assert rates[name][1] == (0.02 if parameter.ndim == 4 else 0.0), name
    assert rates["prior.gains.log_gain"][1] == 0


def test_the_terms_are_those_of_the_losses(settled: SplitSegmenter) -> None:
    experiment = tiny.experiment(teacher={"weight": 1.0, "sharpness": 1.5})
    made, shown = trainee(settled, experiment), batch(soft=True)
    with torch.no_grad(), short_floats(torch.device("cpu")):
        seen = deepcopy(made.network)(shown.images, shown.quality)
    logits = seen.output.float()
    full = upsample(logits, tiny.HEIGHT, tiny.WIDTH)
    at_soft = F.interpolate(logits, shown.soft.shape[-2:], mode="bilinear", align_corners=False)
    sparse = F.interpolate(shown.labels[:, None], logits.shape[-2:], mode="nearest-exact")[:, 0]
    expected = (
        losses.segmentation(full, shown.labels, WEIGHTS),
        losses.lovasz_softmax(logits, sparse),
        losses.distillation(at_soft, shown.soft, WEIGHTS, sharpness=1.5),
        torch.zeros(()),  # there is no picture
        losses.rate_bpp(seen.coded, tiny.HEIGHT * tiny.WIDTH).mean(),
    )
    found = one_step(made, experiment, shown)
    assert found[:5].tolist() == pytest.approx([one.item() for one in expected], rel=1e-3)
    assert found.shape == (6,)


def test_what_an_image_codec_learns_is_the_squared_error_of_its_pictures() -> None:
    torch.manual_seed(0)
    loss = {"labels": 0.0, "lovasz": 0.0, "pixels": 0.01}
    experiment = tiny.experiment(model={"decoder": "image"}, loss=loss)
    made, shown = trainee(build(experiment, tiny.CLASSES), experiment), batch()
    with torch.no_grad(), short_floats(torch.device("cpu")):
        rebuilt = deepcopy(made.network)(shown.images, shown.quality).output
    found = one_step(made, experiment, shown)
    assert found[:3].tolist() == [0, 0, 0]
    assert found[3].item() == pytest.approx((rebuilt.float() - shown.images).square().mean().item(), rel=1e-3)


def test_an_image_codecs_bits_count_alike_whatever_they_weigh_and_its_errors_the_less() -> None:
    norms = {}
    for pixels, rate in ((1e-9, [30.0, 1.0, 0.1]), (1e-9, [1.0, 0.5, 0.2]), (0.01, [1.0, 1.0, 1.0]), (0.02, [2.0] * 3)):
        torch.manual_seed(0)
        loss = {"labels": 0.0, "lovasz": 0.0, "pixels": pixels, "rate": rate}
        experiment = tiny.experiment(model={"decoder": "image"}, loss=loss)
        made = trainee(build(experiment, tiny.CLASSES), experiment)
        norms[pixels, rate[0]] = one_step(made, experiment, batch())[-1].item()
    assert norms[1e-9, 30.0] == pytest.approx(norms[1e-9, 1.0], rel=1e-3)
    assert norms[0.01, 1.0] == pytest.approx(norms[0.02, 2.0], rel=1e-3)
    assert norms[0.01, 1.0] != pytest.approx(norms[1e-9, 1.0], rel=1e-2)


def test_the_lovasz_term_of_teachers_is_that_of_labels_that_say_the_same(settled: SplitSegmenter) -> None:
    shown, blind = batch(soft=True), {"labels": 0.0, "lovasz": 0.0}
    assert shown.soft is not None
    labelled = replace(shown, labels=losses.likeliest(shown.soft, (tiny.HEIGHT, tiny.WIDTH)), soft=None)
    taught = replace(shown, labels=torch.full_like(shown.labels, tiny.VOID))
    by_labels = tiny.experiment(loss={**blind, "lovasz": 0.7})
    by_teachers = tiny.experiment(loss=blind, teacher={"weight": 1e-9, "lovasz": 0.7})
    one = one_step(trainee(settled, by_labels), by_labels, labelled)
    other = one_step(trainee(settled, by_teachers), by_teachers, taught)
    assert other[1].item() == pytest.approx(one[1].item(), rel=1e-2)
    assert other[-1].item() == pytest.approx(one[-1].item(), rel=1e-2)  # of the gradient, which has the weight in it


@pytest.mark.parametrize(
    ("changed", "place"),
    [({"loss": {"labels": 0.0}}, 0), ({"loss": {"lovasz": 0.0}}, 1)],
    ids=["no cross entropy", "no Lovasz term"],
)
def test_a_term_without_weight_is_not_computed(
    settled: SplitSegmenter, changed: dict[str, dict[str, object]], place: int
) -> None:
    experiment = tiny.experiment(**changed)
    found = one_step(trainee(settled, experiment), experiment, batch())
    assert [i for i, term in enumerate(found[:3].tolist()) if term == 0] == [place, 2]


def rate_only(*rate: float) -> Experiment:
    return tiny.experiment(loss={"labels": 0.0, "lovasz": 0.0, "rate": rate}, schedule={"lr": 1e-30})


def norm_of(settled: SplitSegmenter, experiment: Experiment, quality: tuple[int, ...], *, rise: float = 1.0) -> float:
    return one_step(trainee(settled, experiment), experiment, batch(quality=quality), rise=rise)[-1].item()


def test_each_images_bits_have_the_weight_of_its_level(settled: SplitSegmenter) -> None:
    """Seen by the gradient, of which the rate is all there is."""
    lowest, highest = (0, 0, 0, 0), (2, 2, 2, 2)
    base = norm_of(settled, rate_only(1, 1, 1), lowest)
    assert norm_of(settled, rate_only(3, 1, 1), lowest) == pytest.approx(3 * base, rel=1e-2)
    assert norm_of(settled, rate_only(1, 0.5, 0.2), lowest) == pytest.approx(base, rel=1e-3)
    assert norm_of(settled, rate_only(7, 7, 7), highest) == pytest.approx(
        7 * norm_of(settled, rate_only(3, 2, 1), highest), rel=1e-2
    )


def test_the_weight_of_the_rate_rises(settled: SplitSegmenter) -> None:
    quality = (0, 1, 2, 1)
    whole = norm_of(settled, rate_only(4, 2, 1), quality)
    assert norm_of(settled, rate_only(4, 2, 1), quality, rise=0.25) == pytest.approx(whole / 4, rel=1e-2)


def state_of(network: SplitSegmenter) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in network.state_dict().items() if value.is_floating_point()}


def test_nothing_is_learned_at_a_learning_rate_of_none(settled: SplitSegmenter) -> None:
    experiment = tiny.experiment()
    made = trainee(settled, experiment)
    one_step(made, experiment, batch(), learning=0.0)
    before = dict(settled.named_parameters())
    assert all(torch.equal(p, before[name]) for name, p in made.network.named_parameters())


def test_half_the_learning_rate_is_half_the_step(settled: SplitSegmenter) -> None:
    experiment, moved = tiny.experiment(), []
    for learning in (1.0, 0.5):
        made = trainee(settled, experiment)
        one_step(made, experiment, batch(), learning=learning)
        moved.append((made.network.decoder.classify.weight - settled.decoder.classify.weight).detach())
    assert torch.allclose(moved[0], 2 * moved[1], atol=1e-7)
    assert moved[0].abs().max().item() == pytest.approx(1e-3, rel=0.02)  # Adam's first step is the learning rate


@pytest.mark.parametrize("decay", [0.0, 0.7, 1.0])
def test_the_average_moves_by_its_share_batch_norms_with_it(settled: SplitSegmenter, decay: float) -> None:
    experiment = tiny.experiment(schedule={"lr": 0.01})
    made = trainee(settled, experiment)
    before = state_of(made.average)
    one_step(made, experiment, batch(), decay=decay)
    new, average = state_of(made.network), state_of(made.average)
    for name, old in before.items():
        assert torch.allclose(average[name], decay * old + (1 - decay) * new[name], atol=1e-5, rtol=1e-5), name
    norm = "decoder.widen.1.running_mean"
    assert not torch.equal(new[norm], before[norm])


def test_a_large_gradient_is_scaled_down_and_reported_as_it_was(settled: SplitSegmenter) -> None:
    experiment = tiny.experiment(schedule={"clip_norm": 0.01})
    made = trainee(settled, experiment)
    reported = one_step(made, experiment, batch())[-1].item()
    left = torch.nn.utils.get_total_norm([p.grad for p in made.network.parameters() if p.grad is not None])
    assert reported > 0.1
    assert left.item() == pytest.approx(0.01, rel=1e-3)


def test_a_small_gradient_is_left_as_it_is(settled: SplitSegmenter) -> None:
    experiment = tiny.experiment(schedule={"clip_norm": 1e6})
    made = trainee(settled, experiment)
    reported = one_step(made, experiment, batch())[-1].item()
    left = torch.nn.utils.get_total_norm([p.grad for p in made.network.parameters() if p.grad is not None])
    assert left.item() == pytest.approx(reported, rel=1e-5)


def test_a_gradient_that_is_not_finite_names_its_parameter_and_spoils_no_weight(settled: SplitSegmenter) -> None:
    experiment = tiny.experiment()
    made = trainee(settled, experiment)
    made.network.get_parameter(SPOILT).register_hook(lambda gradient: gradient * float("nan"))
    with pytest.raises(TrainingDiverged, match=SPOILT) as caught:
        one_step(made, experiment, batch())
    assert "lower the learning rate" in str(caught.value)
    assert all(p.isfinite().all() for p in made.network.parameters())


def test_steps_that_went_well_leave_nothing_to_settle(settled: SplitSegmenter) -> None:
    experiment = tiny.experiment()
    made = trainee(settled, experiment)
    step = Step(made, experiment, WEIGHTS)
    for _ in range(2):
        step(batch(), learning=1.0, rise=1.0, decay=0.9)
    step.settle()
    step.settle()


def test_same_chance_same_step(settled: SplitSegmenter) -> None:
    experiment, found = tiny.experiment(), []
    for _ in range(2):
        made = trainee(settled, experiment)
        one_step(made, experiment, batch())
        found.append(state_of(made.network))
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])
