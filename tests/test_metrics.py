"""The metrics are well named, and drops are counted by node and reason."""

from prometheus_client import REGISTRY, generate_latest
from prometheus_client.metrics import MetricWrapperBase

from pipeline import metrics


def value(name: str, **labels: str) -> float:
    return REGISTRY.get_sample_value(name, labels) or 0.0


def test_a_drop_is_counted_under_its_node_and_reason() -> None:
    labels = {"node": "gateway", "reason": "test_metrics"}
    before = value("maskcast_drops_total", **labels)
    metrics.drop("gateway", "test_metrics")
    metrics.drop("gateway", "test_metrics", 3)
    assert value("maskcast_drops_total", **labels) == before + 4


def test_every_metric_begins_with_the_projects_name() -> None:
    ours = [each for each in vars(metrics).values() if isinstance(each, MetricWrapperBase)]
    assert len(ours) > 10
    assert all(family.name.startswith("maskcast_") for metric in ours for family in metric.describe())


def test_durations_from_1_to_500_ms_fall_into_different_buckets() -> None:
    for seconds in (0.0009, 0.004, 0.018, 0.055, 0.4):
        metrics.STAGE_SECONDS.labels("test_metrics").observe(seconds)
    page = generate_latest().decode()
    counts = [
        float(line.rpartition(" ")[2])
        for line in page.splitlines()
        if line.startswith("maskcast_stage_seconds_bucket") and "test_metrics" in line
    ]
    assert set(counts) == {1, 2, 3, 4, 5}


def test_a_camera_that_is_forgotten_is_counted_no_longer() -> None:
    metrics.LABELS.labels("test-metrics").inc()
    metrics.forget("test-metrics")
    metrics.forget("test-metrics")
    assert "test-metrics" not in generate_latest().decode()
