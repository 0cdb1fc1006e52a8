"""Person boxes, against the published detector's."""

from __future__ import annotations

import numpy as np
import pytest

from dispose_rt.errors import EngineError, InputError
from dispose_rt.kernels.pixels import letterbox_ratio
from dispose_rt.stages.pose.detect import PersonDetector, decode_boxes
from tests.golden_data import load_golden

from .golden_poses import RecordedEngine, detector_input

CASES = tuple(load_golden("dwpose")["cases"])
#: first row of every stride in the detector's answer
STRIDE_ROWS = {8: 0, 16: 6400, 32: 8000}


def stored_boxes(case):
    return load_golden("dwpose")[f"{case}.boxes"].reshape(-1, 4)


@pytest.mark.parametrize("case", CASES)
def test_letterbox_is_the_published_one(case):
    arrays = load_golden("dwpose")
    image = arrays[f"{case}.image"]
    np.testing.assert_array_equal(detector_input(image)[0], arrays[f"{case}.letterbox"])
    assert letterbox_ratio(*image.shape[:2]) == 640 / max(image.shape)


@pytest.mark.parametrize("shape", [(1, 2000), (2000, 1), (641, 639), (1, 1)])
def test_letterbox_takes_any_shape(shape):
    pixels = detector_input(np.full((*shape, 3), 7, np.uint8))
    assert pixels[0, 0, 0, 0] == 7
    assert pixels[0, 0, -1, -1] == (7 if shape[0] == shape[1] else 114)


@pytest.mark.parametrize("case", CASES)
def test_stored_answers_decode_to_the_published_boxes(case):
    arrays = load_golden("dwpose")
    boxes = decode_boxes(arrays[f"{case}.raw_det"][0], letterbox_ratio(*arrays[f"{case}.image"].shape[:2]))
    assert boxes.dtype == np.float64
    np.testing.assert_array_equal(boxes, stored_boxes(case))


def test_the_detector_feeds_the_letterbox_and_decodes_the_answer():
    arrays = load_golden("dwpose")
    engine = RecordedEngine("person_detector", [{"output": arrays["two_persons.raw_det"]}])
    boxes = PersonDetector(engine).detect(arrays["two_persons.image"])
    np.testing.assert_array_equal(boxes, stored_boxes("two_persons"))
    np.testing.assert_array_equal(engine.asked[0]["images"][0], arrays["two_persons.letterbox"])


def test_an_image_on_the_device_is_taken_where_it_lies():
    arrays = load_golden("dwpose")
    image = arrays["two_persons.image"]
    engine = RecordedEngine("person_detector", [{"output": arrays["two_persons.raw_det"]}] * 2)
    detector = PersonDetector(engine)
    detector.detect(image)
    used_bytes = engine.device.pool.used_bytes
    pixels = engine.device.array(image, engine.stream)
    boxes = detector.detect(pixels)
    pixels.free()
    np.testing.assert_array_equal(boxes, stored_boxes("two_persons"))
    np.testing.assert_array_equal(engine.asked[1]["images"], engine.asked[0]["images"])
    assert engine.device.pool.used_bytes == used_bytes


@pytest.mark.parametrize("image", [np.zeros((5, 5), np.uint8), np.zeros((5, 5, 4), np.uint8), np.zeros((5, 5, 3))])
def test_images_that_are_no_rgb_pixels_are_refused(image):
    with pytest.raises(InputError, match=r"expected uint8 \[height, width, 3\]"):
        PersonDetector(RecordedEngine("person_detector", [])).detect(image)


def test_a_detector_that_answers_nan_is_named():
    engine = RecordedEngine("person_detector", [{"output": np.nan}])
    with pytest.raises(EngineError, match="person_detector returned non-finite values in float32: output"):
        PersonDetector(engine).detect(np.zeros((5, 5, 3), np.uint8))


def answer(*rows):
    """A detector answer: stride, column, row, centre x and y, width, height in pixels, objectness, class, score."""
    output = np.zeros((8400, 85), np.float32)
    for stride, column, row, cx, cy, width, height, objectness, kind, score in rows:
        cell = output[STRIDE_ROWS[stride] + row * (640 // stride) + column]
        cell[:5] = cx / stride - column, cy / stride - row, np.log(width / stride), np.log(height / stride), objectness
        cell[5 + kind] = score
    return output


def test_every_stride_decodes_to_the_same_place():
    for stride in STRIDE_ROWS:
        boxes = decode_boxes(answer((stride, 3, 5, 200, 300, 80, 160, 0.9, 0, 0.9)), 0.5)
        np.testing.assert_allclose(boxes, [[320, 440, 480, 760]], rtol=0, atol=1e-3)


def test_boxes_come_best_first_and_twins_are_dropped():
    weak, strong = (8, 0, 0, 100, 100, 50, 80, 0.6, 0, 0.9), (8, 1, 0, 400, 300, 60, 90, 0.9, 0, 0.9)
    twin = (16, 4, 4, 402, 302, 60, 90, 0.7, 0, 0.9)
    boxes = decode_boxes(answer(weak, twin, strong), 1.0)
    np.testing.assert_allclose(boxes, [[370, 255, 430, 345], [75, 60, 125, 140]], rtol=0, atol=1e-3)


def test_touching_persons_up_to_an_overlap_of_045_both_stay():
    def pair(shift):
        first = (8, 0, 0, 200, 200, 99, 99, 0.9, 0, 0.9)
        return decode_boxes(answer(first, (8, 1, 0, 200 + shift, 200, 99, 99, 0.8, 0, 0.9)), 1.0)

    # With both borders counted the sides are 100 long: (100 - shift) / (100 + shift) is 0.449 and 0.460.
    assert len(pair(38)) == 2
    assert len(pair(37)) == 1


def test_other_classes_neither_count_nor_suppress():
    person, dog = (8, 0, 0, 200, 200, 90, 90, 0.6, 0, 0.6), (8, 1, 0, 200, 200, 90, 90, 0.9, 16, 0.9)
    assert len(decode_boxes(answer(person, dog), 1.0)) == 1
    assert decode_boxes(answer(dog), 1.0).shape == (0, 4)


def test_the_threshold_is_03_in_double_precision():
    nearest = np.float32(0.3)  # a little above 0.3
    below = np.nextafter(nearest, np.float32(0))
    assert len(decode_boxes(answer((8, 0, 0, 200, 200, 90, 90, nearest, 0, 1)), 1.0)) == 1
    assert len(decode_boxes(answer((8, 0, 0, 200, 200, 90, 90, below, 0, 1)), 1.0)) == 0
