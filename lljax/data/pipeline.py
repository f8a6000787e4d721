"""Batches that are a function of (seed, step): shuffled, cropped and flipped the same on any
number of devices or processes, and after a resume."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import grain
import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict
from PIL import Image

from lljax.data import sources
from lljax.errors import InputError, unknown

AUGMENTATIONS = ("none", "flip", "flips", "dihedral")
ROLES = ("low", "high")  # of pictures in a batch


class Data:
    """The training data of a run."""

    def __init__(self, config: ConfigDict, report=print):
        if config.augment not in AUGMENTATIONS:
            raise unknown("config.data.augment", config.augment, AUGMENTATIONS)
        if config.augment == "dihedral" and not (config.resize or config.crop):
            raise InputError("config.data.augment=dihedral turns pictures by 90 degrees, so they "
                             "must be square: set config.data.crop or config.data.resize")
        self.config = config
        tables = sources.open_tables(
            config.source, split="train", low=config.low, high=config.high, root=config.root,
            prepared=config.prepared, flags="--config.data.", report=report)
        for knob in ("share", "brightest"):
            if not 0 < config[knob] <= 1:
                raise InputError(f"config.data.{knob} is {config[knob]}; it must be above 0 and at "
                                 "most 1")
        room = int(config.cache_gib * 2**30) // len(tables)
        self._tables = [sources.Cached(table, room) for table in tables]
        self._chosen = [_Part(table, self._choose(table)) for table in self._tables]

    @property
    def skipped(self) -> int:
        """Number of broken records met so far."""
        return sum(len(getattr(table.records, "skipped", ())) for table in self._tables)

    @property
    def unpaired(self) -> bool:
        """Whether a sample's pictures are drawn independently of each other."""
        return len(self._tables) > 1

    @property
    def fixed(self) -> bool:
        """Whether a record's pictures are the same whenever they are drawn."""
        config = self.config
        return (config.crop in (0, config.resize) and config.augment == "none"
                and not config.permute_channels)

    def __len__(self) -> int:
        return max(len(table) for table in self._chosen)

    def _choose(self, table: sources.Cached) -> Sequence[int]:
        """Which records of a table are used."""
        config, indices = self.config, range(len(table))
        if config.brightest < 1:
            with ThreadPoolExecutor(config.threads or 1) as pool:
                lumas = list(pool.map(lambda index: _luma(table[index]), indices))
            indices = [index for index in indices if lumas[index] <= config.brightest]
            if not indices:
                raise InputError(f"config.data.brightest is {config.brightest}, but the darkest "
                                 f"picture's mean luma is {min(lumas):.3f}; raise it")
        count = max(1, round(config.share * len(indices)))
        return [indices[i * len(indices) // count] for i in range(count)]

    def batches(self, seed: int, start: int, batch_size: int, process: int = 0,
                processes: int = 1) -> Iterator[tuple[dict[str, np.ndarray], list[str]]]:
        """This process's share of the batches from `start` on, without end.

        Args:
          seed: of the order and the augmentation.
          start: first step.
          batch_size: images a step over all processes; a multiple of `processes`.
          process: index of this process.
          processes: their number.

        Yields:
          (batch, names): `low` and, if there is one, `high` uint8 [b, H, W, 3], `low_record` and
          `high_record` int32 [b] (the numbers of their records), `mask` float32 [b], `index` int32
          [b] (place in the global batch); one name an image.
        """
        merged = _merge([self._table(table, seed, number)
                         for number, table in enumerate(self._chosen)])
        # Every process takes each `processes`-th sample: the same samples a step for any number.
        shard = merged[start * batch_size + process::processes]
        index = np.arange(process, batch_size, processes, dtype=np.int32)
        stream = iter(shard.to_iter_dataset(grain.ReadOptions(
            num_threads=self.config.threads, prefetch_buffer_size=2 * len(index))))
        while True:
            samples = [next(stream) for _ in index]
            yield {**_stack(samples), "mask": np.ones(len(index), np.float32),
                   "index": index}, [sample["name"] for sample in samples]

    def _table(self, table: Sequence[dict], seed: int, number: int) -> grain.MapDataset:
        """One endless, shuffled, augmented table."""
        return (grain.MapDataset.source(table).seed(seed * 1009 + number).shuffle().repeat()
                .random_map(self._prepare))

    def _prepare(self, record: dict, rng: np.random.Generator) -> dict:
        """Resize, crop, turn and recolour the pictures of one record, all alike."""
        config = self.config
        pictures = {role: record[role] for role in ROLES if role in record}
        if config.resize:
            pictures = {role: resize(value, config.resize) for role, value in pictures.items()}
        height, width = next(iter(pictures.values())).shape[:2]
        if config.crop:
            if min(height, width) < config.crop:
                raise InputError(
                    f"{record['name']} is {width}x{height}, smaller than config.data.crop="
                    f"{config.crop}; use a smaller crop, or config.data.resize, or take it out")
            top = rng.integers(height - config.crop + 1)
            left = rng.integers(width - config.crop + 1)
            pictures = {role: value[top:top + config.crop, left:left + config.crop]
                        for role, value in pictures.items()}
        turn = rng.integers(8) if config.augment == "dihedral" else 0
        flip = rng.integers(2) if config.augment in ("flip", "flips") else 0
        upside_down = rng.integers(2) if config.augment == "flips" else 0
        pictures = {role: np.rot90(value[:, ::-1] if flip or turn >= 4 else value, turn % 4)
                    for role, value in pictures.items()}
        if upside_down:
            pictures = {role: value[::-1] for role, value in pictures.items()}
        if config.permute_channels:
            order = rng.permutation(3)
            pictures = {role: value[..., order] for role, value in pictures.items()}
        numbers = {f"{role}_record": record["number"] for role in pictures}
        return {**pictures, **numbers, "name": record["name"]}


class _Part:
    """Some records of a table, with their numbers in it."""

    def __init__(self, table: Sequence[dict], indices: Sequence[int]):
        self.table, self.indices = table, indices

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> dict:
        number = self.indices[index]
        return {**self.table[number], "number": number}


def _luma(record: dict) -> float:
    """Mean luma of the low-light picture in [0, 1]; 0 if the record has none."""
    if "low" not in record:
        return 0.0
    return float(record["low"].mean((0, 1)) @ (0.299, 0.587, 0.114)) / 255


def _merge(tables: list[grain.MapDataset]) -> grain.MapDataset:
    """Samples that take one record of each table."""
    if len(tables) == 1:
        return tables[0]
    zipped = grain.experimental.ZipMapDataset(tables)
    return zipped.map(lambda records: {
        **{k: v for record in records for k, v in record.items()},
        "name": " + ".join(record["name"] for record in records)})


def _stack(samples: list[dict]) -> dict[str, np.ndarray]:
    """The pictures of some samples as uint8 [b, H, W, 3] a role, and their records' numbers."""
    batch = {}
    for role in ROLES:
        if role not in samples[0]:
            continue
        sizes = {sample[role].shape: sample["name"] for sample in samples}
        if len(sizes) > 1:
            (a, one), (b, other) = list(sizes.items())[:2]
            raise InputError(f"pictures of one batch differ in size: {one} is {a[1]}x{a[0]}, "
                             f"{other} is {b[1]}x{b[0]}; set config.data.crop or .resize")
        batch[role] = np.stack([sample[role] for sample in samples])
        batch[f"{role}_record"] = np.array([sample[f"{role}_record"] for sample in samples],
                                           np.int32)
    return batch


def resize(picture: np.ndarray, side: int) -> np.ndarray:
    """uint8 [H, W, 3] -> [side, side, 3] by Lanczos, aspect ignored, as the official loaders do."""
    if picture.shape[:2] == (side, side):
        return picture
    return np.asarray(Image.fromarray(picture).resize((side, side), Image.Resampling.LANCZOS))


def unit(picture_u8: jax.Array) -> jax.Array:
    """uint8 -> float32 in [0, 1], as a training step sees pictures."""
    return picture_u8.astype(jnp.float32) / 255.0


def on_device(batch: dict[str, jax.Array], seed: int | jax.Array,
              step: jax.Array) -> dict[str, jax.Array]:
    """What a training step sees: pictures as float32 in [0, 1], one PRNG key an image, the step's
    key, every image's place in the global batch, and the pictures' features if the batch has them.

    Args:
      batch: as yielded by `Data.batches`, perhaps with `features` (see
        `Method.frozen_features`), this device's share; traced.
      seed: of the run; traced, one compiled step serves every seed.
      step: int32, over all phases.
    """
    base = jax.random.fold_in(jax.random.key(seed), step)
    index = batch["index"]
    result = {"mask": batch["mask"], "index": index,
              "key": jax.vmap(lambda index: jax.random.fold_in(base, index))(index),
              "step_key": jnp.broadcast_to(base, index.shape)}
    for role in ROLES:
        if role in batch:
            result[role] = unit(batch[role])
    if "features" in batch:
        result["features"] = batch["features"]
    return result
