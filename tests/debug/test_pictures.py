"""Pictures of every stage: what is drawn, how much is written, and the page about it."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest

from dispose_rt import Animator
from dispose_rt.debug.drawing import choose_flow_scale, draw_flow, fit_view, preview_latents
from dispose_rt.debug.pictures import DebugPictures, spread_numbers
from dispose_rt.debug.points import JointCells, reduce_cells
from dispose_rt.debug.sections import STAGES
from dispose_rt.device import CpuDevice
from dispose_rt.errors import InputError, InputWarning, OutputError
from dispose_rt.hooks.observer import NAMES
from dispose_rt.pictures import JPEG_QUALITY, flow_to_color
from dispose_rt.puppet import Stance, dance, draw_backdrop, draw_puppet
from dispose_rt.stages.appearance import scatter
from dispose_rt.types import Detected, Motion, PointTables, Pose, StepTrace
from tests.every import each

WIDTH, HEIGHT = 64, 128
FRAME_WIDTH, FRAME_HEIGHT = 80, 60


class Page(HTMLParser):
    """What a page links to and says."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path
        self.html = path.read_text(encoding="utf-8")
        self.links: list[str] = []
        self.images: list[str] = []
        self.anchors: set[str] = set()
        self.open: list[str] = []
        self.captions: list[str] = []
        self.bars = 0
        self.feed(self.html)
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        named = dict(attrs)
        self.links += [named[key] or "" for key in ("href", "src") if key in named]
        self.images += [named["src"] or ""] if tag == "img" else []
        self.anchors |= {named["id"] or ""} if "id" in named else set()
        self.bars += named.get("class") == "bar"
        if tag not in {"meta", "img", "rect"}:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "figcaption":
            self.captions.append(data)


def open_page(path: Path) -> Page:
    """Parse a page; check that it needs nothing but the files beside it, and shows all of them."""
    page = Page(path)
    for link in page.links:
        if link.startswith("#"):
            assert link[1:] in page.anchors
        else:
            assert re.fullmatch(r"pictures/\w+\.(png|jpg)", link)
            assert cv2.imread(str(path.parent / link)) is not None
    assert not re.search(r"https?:|//|url\(|@import|<script", page.html)
    assert {f"pictures/{name}" for name in files(path.parent)} == set(page.images)
    return page


def files(folder: Path, stage: str = "") -> list[str]:
    return sorted(one.name for one in (folder / "pictures").glob(f"{stage}*"))


def numbers(folder: Path, stage: str) -> list[int]:
    return [int(re.sub(r"\D", "", name)) for name in files(folder, stage) if "legend" not in name]


def read(folder: Path, name: str) -> np.ndarray:
    return np.asarray(cv2.imread(str(folder / "pictures" / name))[..., ::-1])


def pose(*boxes: tuple[float, float, float, float], shift: float = 0.0) -> Pose:
    """As many people as boxes, all in one place."""
    count = len(boxes)
    column = np.linspace(0.2, 0.8, 18)
    joints = np.broadcast_to(np.stack([0.5 + 0.2 * np.sin(9 * column) + shift, column], -1), (count, 18, 2))
    visible = np.ones((count, 18), bool)
    visible[:, 17] = False
    return Pose(
        joints=joints.astype(np.float64),
        joint_scores=np.ones((count, 18), np.float32),
        visible=visible,
        faces=np.full((count, 68, 2), 0.4),
        face_scores=np.ones((count, 68), np.float32),
        hands=np.full((2, count, 21, 2), 0.6),
        hand_scores=np.ones((2, count, 21), np.float32),
        boxes_px=np.array(boxes, np.float64).reshape(count, 4),
    )


BOX = (10.0, 10.0, 40.0, 50.0)
OTHER = (50.0, 5.0, 75.0, 55.0)
REFERENCE = pose((5.0, 20.0, 60.0, 110.0))


def feed(watch: DebugPictures, frames: int, *, until: str = "frames", missing: tuple[int, ...] = ()) -> None:
    """Show what a run of a tiny clip shows, up to some stage."""
    names = ("reference", "driving", "detected", "aligned", "motion_part", "denoise_step", "frames")
    shown = names[: names.index(until) + 1]
    if "reference" in shown:
        watch("reference", np.full((HEIGHT, WIDTH, 3), 90, np.uint8))
    if "driving" in shown:
        for number in range(frames):
            watch("driving", np.full((FRAME_HEIGHT, FRAME_WIDTH, 3), number % 256, np.uint8))
    if "detected" in shown:
        boxes = (np.array([BOX, OTHER]),) * frames
        size_px = (FRAME_HEIGHT, FRAME_WIDTH)
        watch("detected", Detected(REFERENCE, [pose(BOX)] * frames, size_px, missing, boxes))
    if "aligned" in shown:
        watch("aligned", [REFERENCE, *[pose(BOX, shift=0.05)] * frames])
    if "motion_part" in shown:
        for start in range(1, frames + 1, 50):
            watch("motion_part", (start, motion(range(start, min(start + 50, frames + 1)))))
    if "denoise_step" in shown:
        for step in range(3):
            watch("denoise_step", trace(step, frames))
    if "frames" in shown:
        for start in range(0, frames, 7):
            watch("frames", np.full((min(7, frames - start), HEIGHT, WIDTH, 3), 50, np.uint8))


def motion(clip_frames: range) -> Motion:
    """Frame f of the clip moves f px to the right from the one before, and downwards from the photo."""
    length = np.array(clip_frames, np.float32)[:, None, None]
    flows = np.zeros((2, len(clip_frames), 2, HEIGHT, WIDTH), np.float32)
    flows[0, :, 0], flows[1, :, 1] = length, length
    return Motion(*flows)


def trace(step: int, frames: int, level: float = 0.0) -> StepTrace:
    latents = np.full((frames + 1, 4, HEIGHT // 8, WIDTH // 8), level, np.float32)
    return StepTrace(step, np.zeros((2, 0), np.float32), np.zeros(0, np.float32), latents)


def through_jpeg(picture: np.ndarray) -> np.ndarray:
    """A picture after it was compressed: networks that draw noise lose more than a tolerance would allow."""
    _, data = cv2.imencode(".jpg", picture[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])
    return cv2.imdecode(data, cv2.IMREAD_COLOR)[..., ::-1]


def test_a_run_on_toy_engines(toy_engines: Callable[[int, int], Path], tmp_path: Path) -> None:
    joints = dance(4, 2 / 3, stance=Stance(), period=6)
    film = [draw_puppet(one, 144, 96) for one in joints]
    film[2] = draw_backdrop(144, 96)
    watch = DebugPictures(tmp_path / "pictures of a run", limit=2)
    with Animator(toy_engines(128, 192)) as animator, pytest.warns(InputWarning, match="frames 2"):
        animation = animator.run(
            draw_puppet(dance(1, 2 / 3, energy=0)[0], 192, 128),
            film,
            steps=2,
            overlap=1,
            stride=1,
            progress=False,
            observer=watch,
        )
    path = watch.finish({"steps": 2, "engines": "toys"}, animation.timings)
    page, folder = open_page(path), path.parent
    for stage in ("driving", "detected", "aligned", "trajectory", "dense", "frames"):
        assert numbers(folder, stage) == [0, 2]
    assert numbers(folder, "poses") == [0, 1, 3]  # the photo is the first
    assert numbers(folder, "denoise") == [0, 1]
    assert numbers(folder, "reference") == [0, 1]
    assert len(files(folder, "points")) == 4
    assert [one for one in page.captions if "stands in" in one] == [
        "frame 2, 1 box; person not found, a neighbour's pose stands in"
    ]
    assert "18 of 18 joints found" in page.captions
    assert page.bars == len(animation.timings)
    assert read(folder, "frames_000002.jpg").shape == (192, 128, 3)
    np.testing.assert_array_equal(read(folder, "frames_000002.jpg"), through_jpeg(animation.frames[2]))
    assert not re.search(r"<p class=\"(none|error)", page.html)


def test_all_that_is_wanted_exists() -> None:
    assert DebugPictures.wants <= set(NAMES)


@each(limit=[1, 2, 5, 12])
def test_spread_numbers(limit: int) -> None:
    before: set[int] = set()
    for count in range(200):
        chosen = spread_numbers(count, limit)
        assert len(chosen) <= limit
        assert len(chosen) >= min(count, (limit + 1) // 2)
        assert set(chosen) <= before | {count - 1}  # what was passed over is never asked for again
        assert len(chosen) < 2 or count - chosen[-1] <= 2 * chosen.step
        before = set(chosen)


def test_pictures_of_a_long_clip_are_few_at_any_time(tmp_path: Path) -> None:
    watch = DebugPictures(tmp_path, limit=4)
    watch("reference", np.zeros((HEIGHT, WIDTH, 3), np.uint8))
    frame = np.zeros((8, 8, 3), np.uint8)
    for _ in range(1000):
        watch("driving", frame)
        assert len(watch._driving) <= 4
    assert len(files(tmp_path)) <= 1 + 4
    feed(watch2 := DebugPictures(tmp_path, limit=4), 1000)
    page = open_page(watch2.finish())
    assert numbers(tmp_path, "driving") == numbers(tmp_path, "frames") == [0, 256, 512, 768]
    stages = 8  # of those in STAGES, reference and points do not depend on the clip
    assert len(set(page.images)) <= 2 + 4 + stages * 4 + 5


def test_denoising_steps_are_thinned_and_five_remain(tmp_path: Path) -> None:
    watch = DebugPictures(tmp_path)
    feed(watch, 3, until="aligned")
    for step in range(70):
        watch("denoise_step", trace(step, 3))
        assert len(numbers(tmp_path, "denoise")) <= 33
        assert numbers(tmp_path, "denoise")[-1] == step
    open_page(watch.finish())
    first, *between, last = numbers(tmp_path, "denoise")
    assert (first, last) == (0, 69)
    np.testing.assert_allclose(between, (17.25, 34.5, 51.75), atol=4)


def test_steps_of_two_runs_are_told_apart(tmp_path: Path) -> None:
    watch = DebugPictures(tmp_path)
    feed(watch, 2, until="denoise_step")
    with pytest.raises(InputError, match="one DebugPictures per run"):
        watch("denoise_step", trace(0, 2))


@pytest.mark.parametrize("until", ["reference", "driving", "detected", "motion_part"])
def test_a_failed_run_has_a_page_about_what_was_seen(until: str, tmp_path: Path) -> None:
    watch = DebugPictures(tmp_path)
    feed(watch, 3, until=until)
    page = open_page(watch.finish({"seed": 1}, error=ValueError("<b>broken</b> & torn")))
    assert "ValueError: &lt;b&gt;broken&lt;/b&gt; &amp; torn" in page.html
    assert "the stage was off, or the run ended before it" in page.html
    assert files(tmp_path, "reference")
    assert numbers(tmp_path, "driving") == ([] if until == "reference" else [0, 1, 2])


def test_motion_that_ends_early_is_drawn_as_far_as_it_came(tmp_path: Path) -> None:
    watch = DebugPictures(tmp_path)
    feed(watch, 4, until="aligned")
    watch("motion_part", (1, motion(range(1, 3))))
    open_page(watch.finish(error="cancelled"))
    assert numbers(tmp_path, "trajectory") == numbers(tmp_path, "dense") == [0, 1]


def test_a_killed_run_leaves_a_page_that_says_so(tmp_path: Path) -> None:
    DebugPictures(tmp_path)
    assert "killed" in Page(tmp_path / "index.html").html


def test_motion_is_drawn_beside_its_frame_on_one_scale(tmp_path: Path) -> None:
    watch = DebugPictures(tmp_path, limit=3)
    feed(watch, 6, until="motion_part")
    watch.finish()
    assert numbers(tmp_path, "trajectory") == [0, 2, 4]
    for number in (0, 2, 4):  # frame 4 of the video is frame 5 of the clip, whose 5 px are the longest
        for stage, (x, y) in {"trajectory": (number + 1, 0), "dense": (0, number + 1)}.items():
            expected = flow_to_color(np.broadcast_to(np.array([x, y], float)[:, None, None], (2, HEIGHT, WIDTH)), 5.0)
            np.testing.assert_array_equal(read(tmp_path, f"{stage}_{number:06d}.png"), expected)


def test_broken_motion_is_black_and_counted(tmp_path: Path) -> None:
    watch = DebugPictures(tmp_path)
    feed(watch, 2, until="aligned")
    fields = motion(range(1, 3))
    fields.dense_flow[1, 0, 3, :4] = np.nan
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        watch("motion_part", (1, fields))
    page = open_page(watch.finish())
    assert "frame 1, up to 2 px; 4 pixels not finite" in page.captions
    picture = read(tmp_path, "dense_000001.png")
    assert not picture[3, :4].any()
    assert picture[4].any(axis=-1).all()


def test_flow_scale_is_round_and_passes_over_the_first_jump() -> None:
    fields = [np.full((2, 4, 4), length, np.float32) for length in (1000.0, 3.0, 5.2)]
    assert choose_flow_scale(fields) == 7.5  # of 5.2 * sqrt(2)
    assert choose_flow_scale(fields[:1]) == 1500.0
    assert choose_flow_scale([np.zeros((2, 4, 4))]) == 1.0
    assert (draw_flow(fields[1], 7.5) > 0).any()


def test_boxes_of_everybody_and_of_the_followed_person(tmp_path: Path) -> None:
    feed(DebugPictures(tmp_path), 2, until="detected", missing=(1,))
    followed, absent = (read(tmp_path, f"detected_00000{number}.jpg").astype(int) for number in (0, 1))
    zoom = followed.shape[0] // FRAME_HEIGHT
    assert followed.shape == fit_view(np.zeros((FRAME_HEIGHT, FRAME_WIDTH, 3), np.uint8)).shape
    edge, other = (int((box[1] + 3) * zoom) for box in (BOX, OTHER))
    green = followed[edge, int(BOX[0] * zoom)]
    assert green[1] - green[0] > 80
    white = followed[other, int(OTHER[0] * zoom)]
    assert white.min() > 150
    assert absent[edge, int(BOX[0] * zoom)].min() > 150  # nobody is followed there: a box among others
    assert absent[1:4, 100, 0].min() > 180  # the red border
    assert absent[1:4, 100, 2].max() < 130


def test_result_stands_beside_its_driving_frame(tmp_path: Path) -> None:
    watch = DebugPictures(tmp_path)
    feed(watch, 2)
    page = open_page(watch.finish())
    pairs = re.findall(r'<figure><div class="pictures">.*?href="([^"]*)".*?href="([^"]*)"', page.html)
    assert ("pictures/driving_000001.jpg", "pictures/frames_000001.jpg") in pairs


def test_poses_without_frames_are_drawn_on_grey(tmp_path: Path) -> None:
    watch = DebugPictures(tmp_path)
    watch("reference", np.zeros((HEIGHT, WIDTH, 3), np.uint8))
    watch("detected", Detected(REFERENCE, [pose(BOX)] * 2, (60, 80), (), (np.array([BOX]),) * 2))
    open_page(watch.finish())
    assert numbers(tmp_path, "detected") == [0, 1]


def test_stages_out_of_order_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match='before "reference"'):
        DebugPictures(tmp_path)("aligned", [REFERENCE, REFERENCE])


def test_other_names_are_passed_over(tmp_path: Path) -> None:
    watch = DebugPictures(tmp_path)
    watch("latents", None)
    open_page(watch.finish())


def test_latents_that_are_not_finite(tmp_path: Path) -> None:
    watch = DebugPictures(tmp_path)
    feed(watch, 2, until="aligned")
    broken = trace(0, 2)
    broken.latents[1, 2, 0, :3] = np.nan
    watch("denoise_step", broken)
    watch("denoise_step", trace(1, 2, np.inf))
    page = open_page(watch.finish())
    assert "after step 1, standard deviation 0; 3 values not finite" in page.captions
    count = 2 * 4 * (HEIGHT // 8) * (WIDTH // 8)
    assert f"after step 2; {count} values not finite" in page.captions


def test_preview_of_latents() -> None:
    latents = np.zeros((2, 4, 6, 3), np.float32)
    latents[1, 0], latents[1, 3, :, 0] = 1.0, np.nan
    grey, warm = preview_latents(latents)
    assert grey.shape == (192, 96, 3)
    np.testing.assert_array_equal(grey, 127)
    assert not warm[:, :32].any()
    np.testing.assert_array_equal(warm[:, 32:], np.broadcast_to((165, 153, 154), (192, 64, 3)))
    loud = np.random.default_rng(0).standard_normal((1, 4, 6, 3)).astype(np.float32)
    np.testing.assert_allclose(
        *(preview_latents(scale * loud / loud.std())[0].astype(int) for scale in (1, 700)), atol=1
    )


@each(seed=range(4))
def test_cells_of_a_level_are_those_that_the_kernel_fills(seed: int) -> None:
    occupied = np.random.default_rng(seed).random((8, 12)) < 0.4
    stream = CpuDevice().stream()
    tables = tuple(stream.device.array(np.ones((1, 2), np.float32), stream) for _ in range(4))
    points = PointTables(np.where(occupied, 0, -1).astype(np.int32)[None], tables)
    for level, factor in zip(scatter(points, 0, 1, stream), (1, 2, 4, 4), strict=True):
        touched, filled = reduce_cells(occupied, factor)
        np.testing.assert_array_equal(filled, level[0, 0] != 0)
        assert (touched | ~filled).all()
    points.close()


def test_joints_that_share_a_cell_are_named() -> None:
    one = pose(BOX)
    one.joints[0, :3] = [(0.1, 0.1), (0.12, 0.1), (-0.5, 0.5)]
    cells = JointCells(np.zeros((HEIGHT, WIDTH, 3), np.uint8), one)
    rows = {row[0]: row[1:] for row in cells.table()}
    assert rows["nose"] == ["6, 13", "1.00", "0, 0", "neck"]
    assert rows["neck"] == ["8, 13", "1.00", "0, 0", "nose"]
    assert rows["r-shoulder"] == ["-32, 64", "1.00", "outside", ""]
    assert rows["l-ear"] == ["not seen", "1.00", "", ""]
    red = (cells.draw_names().astype(int) @ (1, -1, 0) > 150).any(axis=1)
    assert red.any()  # rings and labels


@pytest.mark.parametrize("limit", [0, -1, 201])
def test_limits_out_of_range(limit: int, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=str(limit)):
        DebugPictures(tmp_path / "new", limit)
    assert not (tmp_path / "new").exists()


def test_an_earlier_run_is_replaced_and_other_files_stay(tmp_path: Path) -> None:
    watch = DebugPictures(tmp_path, limit=8)
    feed(watch, 8, until="driving")
    watch.finish()
    mine = tmp_path / "pictures" / "driving_force.jpg"
    mine.write_bytes(b"mine")
    DebugPictures(tmp_path)
    assert files(tmp_path) == [mine.name]


def test_somebody_else_s_page_is_left_alone(tmp_path: Path) -> None:
    mine = tmp_path / "mine" / "pictures" / "driving_000001.png"
    mine.parent.mkdir(parents=True)
    mine.write_bytes(b"mine")
    with pytest.raises(OutputError, match=r"driving_000001\.png is no debug picture of ours"):
        DebugPictures(tmp_path / "mine")
    assert mine.read_bytes() == b"mine"
    page = tmp_path / "index.html"
    page.write_text("<html>my site</html>")
    with pytest.raises(OutputError, match="not a page of debug pictures"):
        DebugPictures(tmp_path)
    assert page.read_text() == "<html>my site</html>"


def test_folders_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(OutputError, match=r"file.*folder"):
        DebugPictures(tmp_path / "file")
    watch = DebugPictures(tmp_path / "new")
    (tmp_path / "new" / "pictures").write_bytes(b"")
    with pytest.raises(OutputError, match="cannot be written"):
        watch("reference", np.zeros((HEIGHT, WIDTH, 3), np.uint8))


def test_names_and_values_of_the_summary_are_text(tmp_path: Path) -> None:
    values = {"<i>": SimpleNamespace(a="<script>"), "controls": ("motion", "points"), "fps": None, "others": ()}
    path = DebugPictures(tmp_path).finish(values, {"pose": 0.0})
    page = open_page(path)
    assert "&lt;i&gt;" in page.html
    assert re.findall(r"<td>([a-z, ]+)</td>", page.html) == ["motion, points", "automatic", "none"]
    assert page.bars == 1
    assert {"summary", "timings", *STAGES} <= page.anchors


def test_the_page_follows_dark_mode_and_small_screens(tmp_path: Path) -> None:
    html: Any = DebugPictures(tmp_path).finish().read_text()
    assert "prefers-color-scheme: dark" in html
    assert 'name="viewport"' in html
