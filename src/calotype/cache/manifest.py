"""The manifest: one table of all samples, made of what the units hold. No torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from calotype.cache.guard import waiting
from calotype.cache.job import Job
from calotype.cache.receipts import Receipt, receipts
from calotype.cache.seen import scanned
from calotype.cache.store import MANIFEST, SCAN, Store, samples_name
from calotype.cache.tables import MANIFEST as COLUMNS, SAMPLES, arrow, parquet, read, table
from calotype.cache.units import held, sample_id


def write_manifest(store: Store, job: Job, tell: Callable[[], None] = lambda: None) -> int:
    """Writes it, of all that is there now and that the last scan has seen; gives its rows.

    Captions and labels are those of the scan. Without a scan it has every row that units hold.

    Args:
        tell: called while another run writes it.

    Raises:
        StorageError: the disk refuses it, or a file is damaged.
    """
    with waiting(store.path(f"{MANIFEST}.lock"), tell=tell):
        good, _ = receipts(store, job.fingerprint)
        rows = manifest_rows(store, good)
        store.write(MANIFEST, parquet(rows, {"fingerprint": job.fingerprint}))
    return int(rows.num_rows)


def manifest_rows(store: Store, good: Mapping[str, Receipt]) -> Any:
    """The manifest's rows as a pyarrow Table, of these receipts.

    Raises:
        StorageError: a file is damaged.
    """
    pa, _ = arrow()
    has = held(store, good)
    parts = [read(store.path(samples_name(unit)), SAMPLES) for unit in has.units]
    starts = np.cumsum([0, *(part.num_rows for part in parts)])
    nothing = table({name: [] for name in SAMPLES}, SAMPLES)
    whole = pa.concat_tables([nothing, *parts])
    if store.size(SCAN) is None:
        places = np.arange(whole.num_rows)
        units = np.repeat(np.arange(len(parts)), np.diff(starts))
        made = whole
    else:
        seen = scanned(store)
        found = []
        for i, (name, key) in enumerate(zip(seen["name"].to_pylist(), seen["key"].to_pylist(), strict=True)):
            if (place := has.rows.get(sample_id(name, key))) is not None:
                found.append((i, *place))
        rows, units, inner = np.array(found, dtype=np.int64).reshape(-1, 3).T
        places = starts[units] + inner
        made, now = whole.take(places), seen.take(rows)
        for name in ("caption", "label"):
            made = made.set_column(made.schema.get_field_index(name), name, now[name].combine_chunks())
    used, numbers = np.unique(units, return_inverse=True)
    names = pa.array([has.units[i] for i in used], type=pa.string())
    column = pa.DictionaryArray.from_arrays(pa.array(numbers.astype(np.int32)), names)
    return made.append_column("unit", column).select(list(COLUMNS)).combine_chunks()
