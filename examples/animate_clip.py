"""The shortest way: one photo, one video, one call.

python examples/animate_clip.py engines photo.jpg dance.mp4 out.mp4
"""

from __future__ import annotations

import argparse
import sys

import dispose_rt


def main() -> int:
    """Make one video."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("engines", help="engine directory, or a folder of several")
    parser.add_argument("reference", help="photo of one person")
    parser.add_argument("video", help="video whose movement is used")
    parser.add_argument("output", help="mp4, webm or gif to write")
    parser.add_argument("--steps", type=int, default=25)
    arguments = parser.parse_args()
    try:
        with dispose_rt.Animator(arguments.engines) as animator:
            animation = animator.run(
                arguments.reference,
                arguments.video,
                steps=arguments.steps,
                output=arguments.output,
                keep_frames=False,  # they are in the file; a long clip would fill the memory
            )
    except dispose_rt.DisposeError as error:  # the root of all errors that say what to do
        print(f"error: {error}", file=sys.stderr)
        return 1
    seconds = sum(animation.timings.values())
    print(f"{arguments.output}: {animation.frame_count} frames in {seconds:.1f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
