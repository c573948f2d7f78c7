"""Benchmarks: each checks its result against the reference first, then times both sides in turns; medians, one JSON
line last.

`omni bench media`: files → numbers, against transformers' own processor at equal pixels, in one run.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import torch

from omni.bench_result import Result, comparisons, in_turns, line
from processors import image, video
from processors.ahead import ahead
from processors.chat import Item
from processors.clips import average_fps, open_video, stream
from processors.items import Pages
from processors.media import open_picture
from processors.pdf import open_document
from processors.rules import Rules


def pictures(folder: Path, repeats: int) -> Result:
    """1080p pictures from a JPEG file to patches."""
    from PIL import Image
    from transformers.models.nemotron_h_omni.image_processing_nemotron_h_omni import (
        NemotronH_Omni_Reasoning_V3ImageProcessor,
    )

    generator = np.random.default_rng(0)
    small = generator.integers(0, 256, (68, 120, 3), dtype=np.uint8)
    files = [folder / f"{i}.jpg" for i in range(4)]
    for i, file in enumerate(files):
        Image.fromarray(np.roll(small, i, 1)).resize((1920, 1080), Image.Resampling.BICUBIC).save(file, quality=92)
    processor = NemotronH_Omni_Reasoning_V3ImageProcessor()
    grid = image.grid(1920, 1080, rule=image.TRANSFORMERS)

    def ours() -> torch.Tensor:
        return torch.cat([image.patches(open_picture(file), grid) for file in files])

    def theirs() -> torch.Tensor:
        opened = [Image.open(file).convert("RGB") for file in files]
        return processor(images=opened, return_tensors="pt")["pixel_values"]

    difference = float((ours() - theirs()).abs().max())
    assert difference < 1e-4, f"patches differ by {difference}"
    a, b, spread = in_turns(ours, theirs, repeats)
    return Result(name="4 pictures 1080p", ours=a, theirs=b, spread=spread, note=f"patches differ by {difference:.0e}")


def make_clip(path: Path, seconds: int, size: tuple[int, int] = (1280, 720), fps: int = 30) -> None:
    """A clip of moving bars, H.264."""
    import av

    with av.open(str(path), "w") as container:
        track = container.add_stream("libx264", rate=fps, options={"preset": "ultrafast", "g": "60"})
        track.width, track.height, track.pix_fmt = *size, "yuv420p"
        ramp = (np.arange(size[0]) % 256).astype(np.uint8)
        base = np.broadcast_to(ramp, (size[1] * 3 // 2, size[0])).copy()
        for i in range(seconds * fps):
            frame = av.VideoFrame.from_ndarray(np.roll(base, 3 * i, 1), format="yuv420p")
            frame.pts, frame.time_base = i, Fraction(1, fps)
            container.mux(track.encode(frame))
        container.mux(track.encode())


def lengthen(path: Path, target: Path, times: int) -> None:
    """The same packets again and again, without encoding."""
    import av

    with av.open(str(target), "w") as out:
        track: Any = None
        offset = 0
        for _ in range(times):
            with av.open(str(path)) as container:
                source = container.streams.video[0]
                track = track or out.add_stream_from_template(source)
                for packet in container.demux(source):
                    if packet.dts is None or packet.pts is None:
                        continue
                    packet.pts, packet.dts, packet.stream = packet.pts + offset, packet.dts + offset, track
                    out.mux(packet)
                offset += source.duration or 0


def clip(path: Path, repeats: int) -> Result:
    """A clip at 1 frame a second, from the file to tubelets; theirs reads with the faster of its two readers here."""
    from transformers.models.nemotron_h_omni.video_processing_nemotron_h_omni import (
        NemotronH_Omni_Reasoning_V3VideoProcessor,
    )
    from transformers.video_utils import load_video

    rule = image.PixelRule()
    mean, std = list(rule.mean), list(rule.std)
    processor = NemotronH_Omni_Reasoning_V3VideoProcessor(norm_mean=mean, norm_std=std, do_convert_rgb=False)
    opened = open_video(path)
    indices = video.sample(video.RECIPE, len(opened), average_fps(opened.times), opened.times.tolist())
    grid = video.clip_grid(*opened.size)
    opened.close()

    def ours() -> int:
        source = open_video(path)
        count = sum(len(part) for part in video.tubelet_stream(stream(source, indices), grid))
        source.close()
        return count

    def theirs(backend: str) -> Any:
        def chosen(metadata: Any, **_: Any) -> np.ndarray:
            return np.array(indices)

        frames, _ = load_video(str(path), backend=backend, sample_indices_fn=chosen)  # pyright: ignore[reportArgumentType]  (a path is taken)
        planes = torch.from_numpy(np.ascontiguousarray(frames)).permute(0, 3, 1, 2)
        return processor._preprocess([planes])["pixel_values_videos"]

    timed: dict[str, float] = {}
    for backend in ("decord", "pyav"):
        start = time.perf_counter()
        theirs(backend)
        timed[backend] = time.perf_counter() - start
    best = min(timed, key=lambda name: timed[name])
    a, b, spread = in_turns(ours, lambda: theirs(best), repeats)
    note = f"{len(indices)} frames; theirs with {best}"
    return Result(name=f"{path.stem} at 1 fps", ours=a, theirs=b, spread=spread, note=note)


def pages(folder: Path, count: int) -> Result:
    """PDF pages drawn in the background while a tower encodes, against one after the other."""
    from PIL import Image, ImageDraw

    from encoders.vision import RadioVit, VisionConfig

    sheets = []
    for number in range(count):
        sheet = Image.new("L", (620, 877), 255)
        ImageDraw.Draw(sheet).text((40, 40), f"page {number}\n" * 40, 0)
        sheets.append(sheet)
    sheets[0].save(folder / "pages.pdf", save_all=True, append_images=sheets[1:], resolution=75)
    torch.manual_seed(0)
    tower = RadioVit(VisionConfig(width=96, depth=2, heads=2, mlp_width=192)).eval()
    item = Item(kind="document", thing=folder / "pages.pdf", name="pages.pdf")

    @torch.no_grad()
    def read(order: Callable[[Iterator[Any]], Iterator[Any]]) -> None:
        with open_document(item.thing) as document:
            pages = Pages(item, Rules(), document)
            for _, made in order(pages.pieces([(44, 32)] * count)):
                tower(made.patches, made.grids)

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    a, b, spread = in_turns(lambda: read(ahead), lambda: read(iter), 3)
    start = time.perf_counter()
    with open_document(item.thing) as document:
        drawn = sum(len(made.grids) for _, made in Pages(item, Rules(), document).pieces([(44, 32)] * count))
    alone = time.perf_counter() - start
    assert drawn == count
    torch.set_num_threads(threads)
    note = (
        f"ours: drawn in the background of encoding; theirs: one after the other; drawing alone {alone:.2f} s; "
        "one torch thread"
    )
    return Result(name=f"{count} PDF pages", ours=a, theirs=b, spread=spread, note=note)


PEAK = """
import sys
from processors import video
from processors.clips import average_fps, open_video, stream
clip = open_video(sys.argv[1])
indices = video.sample(video.Rate(fps=1.0, cap=None), len(clip), average_fps(clip.times), clip.times.tolist())
grid = video.clip_grid(*clip.size)
for segment in video.segments(indices, 16):
    for part in video.tubelet_stream(stream(clip, segment.indices), grid):
        pass
status = dict(line.split(":", 1) for line in open("/proc/self/status"))  # ru_maxrss would remember the parent's
print(int(status["VmHWM"].split()[0]) * 1024, len(indices))
"""


def peak(path: Path) -> tuple[int, int]:
    """Peak resident bytes of a process that makes a clip segment by segment, and the frames it made."""
    done = subprocess.run([sys.executable, "-c", PEAK, str(path)], capture_output=True, text=True, check=True)
    size, frames = map(int, done.stdout.split())
    return size, frames


def media(minutes: int = 10, page_count: int = 300, repeats: int = 5) -> tuple[list[Result], dict[str, Any]]:
    """All of them, and the memory of an hour against a minute."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        results = [pictures(folder, repeats)]
        make_clip(folder / "minute.mp4", 60)
        long = folder / f"{minutes} minutes 720p.mp4"
        lengthen(folder / "minute.mp4", long, minutes)
        results.append(clip(long, max(3, repeats // 2)))
        lengthen(folder / "minute.mp4", folder / "hour.mp4", 60)
        (short_peak, _), (long_peak, frames) = peak(folder / "minute.mp4"), peak(folder / "hour.mp4")
        results.append(pages(folder, page_count))
    memory = {"minute_bytes": short_peak, "hour_bytes": long_peak, "hour_frames": frames}
    return results, memory


def report(results: list[Result], memory: dict[str, Any]) -> str:
    """One JSON line."""
    return line(results=comparisons(results), **memory)
