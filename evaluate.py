"""Scores trained systems and the baselines on pictures with references; --help shows the flags."""

from lljax.errors import run
from lljax.evaluation.evaluate import main

if __name__ == "__main__":
    run(main)
