"""A bundle's manifest as a table for a person."""

from rich.console import Console
from rich.table import Table

from pipeline.bundle import Bundle, content_files


def print_manifest(bundle: Bundle) -> None:
    """Print what a bundle says of itself, its files and its classes in their colours."""
    manifest = bundle.manifest
    table = Table("field", "value", title=manifest.name, title_justify="left")
    for field in ("hash", "created_by", "dataset", "grid", "precision", "licence"):
        table.add_row(field, str(getattr(manifest, field)))
    table.add_row("size", f"{manifest.width}x{manifest.height}")
    if manifest.smoothing is not None:
        table.add_row("smoothing", f"{manifest.smoothing:g} logits")
    for level in manifest.quality_levels:
        default = ", default" if level.default else ""
        frame_bytes = level.rate_bpp * manifest.width * manifest.height / 8
        figures = f"{frame_bytes:.0f} bytes a frame, mIoU {100 * level.miou:.2f}{default}"
        table.add_row(f"quality {level.index}", figures)
    for name in content_files(manifest):
        table.add_row("file", f"{name}, {(bundle.path / name).stat().st_size} bytes")
    for index, one in enumerate(manifest.classes):
        swatch = "[on rgb({},{},{})]   [/] ".format(*one.colour)
        table.add_row(f"class {index}", f"{swatch}{one.name}")
    Console().print(table)
