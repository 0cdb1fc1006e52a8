"""Frames as they are decoded, for your own encoder, socket or window; memory use stays flat.

Here each frame becomes a numbered PNG in a folder, as compositing programs expect.

    python examples/stream_frames.py engines photo.jpg dance.mp4 frames/
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import dispose_rt
from dispose_rt.pictures import save_png


def main() -> int:
    """Write one PNG per frame."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("engines", help="engine directory, or a folder of several")
    parser.add_argument("reference", help="photo of one person")
    parser.add_argument("video", help="video whose movement is used")
    parser.add_argument("folder", type=Path, help="folder for the pictures")
    parser.add_argument("--steps", type=int, default=25)
    arguments = parser.parse_args()
    try:
        with dispose_rt.Animator(arguments.engines) as animator:
            frames = animator.stream(arguments.reference, arguments.video, steps=arguments.steps)
            for number, frame in enumerate(frames):  # uint8 [height, width, 3], RGB
                save_png(arguments.folder / f"{number:05}.png", frame)
    except dispose_rt.DisposeError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
