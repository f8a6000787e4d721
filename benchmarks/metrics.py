"""PSNR, SSIM and MAE of many pictures: lljax's against scikit-image's, on the same pictures.

    python benchmarks/metrics.py [--pictures 100] [--width 600] [--height 400] [--rounds 3]

Each round scores every picture once with either side, picture by picture in turns, so that both
meet the same load; the ratio is of processor times, whose other users do not count. scikit-image
gets the arguments that make its SSIM the same (it has no MAE: numpy's).
"""

import argparse
import statistics
import time

import numpy as np
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from lljax.evaluation import metrics


def ours(enhanced, reference):
    return [getattr(metrics, name)(enhanced, reference) for name in ("psnr", "ssim", "mae")]


def theirs(enhanced, reference):
    return [peak_signal_noise_ratio(reference, enhanced, data_range=255),
            structural_similarity(enhanced, reference, gaussian_weights=True, sigma=1.5,
                                  use_sample_covariance=False, channel_axis=2, data_range=255),
            np.abs(enhanced.astype(float) - reference).mean()]


def pictures(count, height, width):
    """Pairs of a smooth picture with texture and a darker, noisy one."""
    y, x = np.mgrid[:height, :width]
    for seed in range(count):
        rng = np.random.default_rng(seed)
        smooth = 127 + 90 * np.sin(x / (9 + seed)) * np.cos(y / 23)
        reference = (smooth[..., None] + rng.normal(0, 8, (height, width, 3))).clip(0, 255)
        enhanced = (reference * 0.8 + rng.normal(0, 4, reference.shape)).clip(0, 255)
        yield enhanced.astype(np.uint8), reference.astype(np.uint8)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--pictures", type=int, default=100)
    parser.add_argument("--width", type=int, default=600)
    parser.add_argument("--height", type=int, default=400)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    pairs = list(pictures(args.pictures, args.height, args.width))
    sides, wall, cpu, largest = {"lljax": ours, "scikit-image": theirs}, {}, {}, 0.0
    for _ in range(args.rounds):
        spent = {name: [0.0, 0.0] for name in sides}
        for pair in pairs:
            found = {}
            for name, score in sides.items():
                start = time.perf_counter(), time.process_time()
                found[name] = score(*pair)
                spent[name][0] += time.perf_counter() - start[0]
                spent[name][1] += time.process_time() - start[1]
            largest = max(largest, *np.abs(np.subtract(*found.values())))
        for name, (seconds, busy) in spent.items():
            wall.setdefault(name, []).append(seconds)
            cpu.setdefault(name, []).append(busy)
    for name in sides:
        print(f"{name:12}  {statistics.median(cpu[name]) / args.pictures * 1000:6.1f} ms of "
              f"processor a picture, {statistics.median(wall[name]):.2f} s for {args.pictures}")
    ratios = [a / b for a, b in zip(cpu["scikit-image"], cpu["lljax"], strict=True)]
    print(f"scikit-image / lljax: {statistics.median(ratios):.2f} (by round "
          f"{', '.join(f'{ratio:.2f}' for ratio in ratios)}); largest difference {largest:.1e}")


if __name__ == "__main__":
    main()
