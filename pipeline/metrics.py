"""Every Prometheus metric of maskcast; the only list of metric names.

`camera` is a label only where the name and a packet have been checked, and it goes when
the camera is forgotten, so a stranger cannot fill the memory.
"""

from contextlib import suppress

from prometheus_client import Counter, Gauge, Histogram

# 1 to 500 ms: a stage takes a few, the way from capture to mask some tens.
_BUCKETS_S = (0.001, 0.002, 0.003, 0.005, 0.008, 0.012, 0.016, 0.02, 0.03, 0.04, 0.06, 0.08, 0.12, 0.2, 0.5)
_BATCH_BUCKETS = (1, 2, 4, 8, 16, 32)

FRAMES = Counter("maskcast_frames", "Frames a camera took from its source", ["camera"])
PACKETS = Counter("maskcast_packets", "Packets a node sent on or decoded", ["node"])
PACKET_BYTES = Counter("maskcast_packet_bytes", "Bytes of those packets, all overhead in", ["node"])
REGIONS = Counter("maskcast_regions", "Regions of the packets a camera sent", ["kind"])
REGION_BYTES = Counter("maskcast_region_bytes", "Bytes of those regions' bodies, overhead left out", ["kind"])
MASKS = Counter("maskcast_masks", "Masks published", ["camera"])
LABELS = Counter("maskcast_labels", "Class scores published", ["camera"])
DROPS = Counter("maskcast_drops", "Frames, packets and messages that went no further", ["node", "reason"])
CONTROLS = Counter("maskcast_controls", "Control messages a camera obeyed", ["command"])
KEYS = Counter("maskcast_keys", "KEY regions put into the global key buffer")
KEY_LOOKUPS = Counter("maskcast_key_lookups", "Keys regions referred to: local, fetched or missing", ["where"])
KEY_REQUESTS = Counter("maskcast_key_requests", "Regions whose keys were asked of their cameras")
DECODED_REGIONS = Counter("maskcast_decoded_regions", "Regions a worker decoded", ["kind"])
RETRIES = Counter("maskcast_retries", "Calls to a server that were made again", ["peer"])

STAGE_SECONDS = Histogram("maskcast_stage_seconds", "Time in one stage", ["stage"], buckets=_BUCKETS_S)
LATENCY_SECONDS = Histogram("maskcast_latency_seconds", "Capture to published mask", buckets=_BUCKETS_S)
BATCH_PACKETS = Histogram("maskcast_batch_packets", "Packets decoded in one batch", buckets=_BATCH_BUCKETS)

BUFFERED = Gauge("maskcast_buffered_packets", "Packets waiting in a node's own buffer", ["node"])
CAMERA_TARGET = Gauge("maskcast_camera_target_kbit_s", "What a camera's link takes, by its rate control")
CAMERA_QUEUE = Gauge("maskcast_camera_queue_seconds", "Queueing delay on a camera's link")
CAMERA_LEVEL = Gauge("maskcast_camera_quality_level", "Quality level that a camera's rate control chose")
CAMERA_THRESHOLD = Gauge("maskcast_camera_threshold_percent", "Threshold that a camera's rate control chose")
CAMERA_FPS = Gauge("maskcast_camera_fps", "Frames per second that a camera's rate control chose")
TASKS = Gauge("maskcast_tasks", "Tasks of this node's event loop that have not ended")
WEBRTC_SESSIONS = Gauge("maskcast_webrtc_sessions", "Cameras that are connected to this gateway over WebRTC")
QUEUE_DEPTH = Gauge("maskcast_queue_depth", "Packets waiting or unacknowledged in the work queue")


def drop(node: str, reason: str, count: int = 1) -> None:
    """Count what went no further at this node (camera, gateway, worker, transport, webrtc, queue, viewer)."""
    DROPS.labels(node, reason).inc(count)


def forget(camera: str) -> None:
    """Count no longer, on this worker, a camera that is gone."""
    for counter in (MASKS, LABELS):
        with suppress(KeyError):  # it may never have had one
            counter.remove(camera)
