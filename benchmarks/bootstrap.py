"""How often the reports' bootstrap interval covers the true mean: simulated scores.

    python benchmarks/bootstrap.py [--repeats 2000] [--pictures 5 15 50]

Draws the scores of so many pictures from a known distribution, takes the 95 % interval as
`evaluate.py` does, and counts how often it holds the distribution's mean: for normal scores, and
for scores that are skewed, as a set with some hopeless pictures has.
"""

import argparse
import math

import numpy as np

from lljax.evaluation.evaluate import interval

# sampler of the scores, and their true mean
DISTRIBUTIONS = {"normal": (lambda rng, n: rng.normal(18, 3, n), 18.0),
                 "skewed (18 minus a gamma of shape 2)":
                     (lambda rng, n: 18 - rng.gamma(2, 1.5, n), 15.0)}


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--repeats", type=int, default=2000)
    parser.add_argument("--pictures", type=int, nargs="+", default=[5, 15, 50])
    args = parser.parse_args()
    for name, (draw, mean) in DISTRIBUTIONS.items():
        for n in args.pictures:
            rng = np.random.default_rng(n)
            held = 0
            for repeat in range(args.repeats):
                low, high = interval(draw(rng, n), seed=repeat)
                held += low <= mean <= high
            share = held / args.repeats
            print(f"{name}, {n} pictures: {100 * share:.1f} % +- "
                  f"{196 * math.sqrt(share * (1 - share) / args.repeats):.1f}", flush=True)


if __name__ == "__main__":
    main()
