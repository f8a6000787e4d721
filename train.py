"""Trains a method.

python train.py --config configs/zerodce.py[:preset,...] --workdir runs/a [--config.key=value ...]
"""

from lljax import parallel
from lljax.config import parse
from lljax.errors import InputError, run


def main(argv: list[str]) -> None:
    """Parses the flags, joins the other processes if there are any, and trains."""
    flags = parse(
        argv,
        workdir=("", "Folder of the run; the same command resumes it"),
        coordinator=("", "host:port of process 0 when several processes train together, or "
                         '"auto" under SLURM, Open MPI or on a TPU pod'),
        process_count=(1, "Number of processes"),
        process_id=(0, "This process, from 0"))
    if flags.config is None:
        raise InputError("give --config, e.g. --config configs/zerodce.py")
    if not flags.workdir:
        raise InputError("give --workdir, the folder of the run, e.g. --workdir runs/a")
    parallel.keep_programs()
    if flags.coordinator:
        parallel.start(flags.coordinator, flags.process_count, flags.process_id)
    from lljax.training.loop import fit  # after the processes have joined
    fit(flags.config, flags.workdir)


if __name__ == "__main__":
    run(main)
