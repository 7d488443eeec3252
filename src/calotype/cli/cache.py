"""`calotype cache`: latents of a whole data set, made once and kept."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from calotype.cli.common import (
    BackgroundOption,
    DataArgument,
    DeviceOption,
    Dtype,
    FormatOption,
    JsonOption,
    MemoryOption,
    PrefixOption,
    VaeOption,
    WeightsOption,
    colour,
    complain,
    finish,
    load_vae,
    require_folder,
    size_of,
    stop,
    table,
)
from calotype.cli.measuring import MOST_SAID, bar
from calotype.errors import UsageError
from calotype.texts import plain

if TYPE_CHECKING:
    from calotype.cache.make import Outcome, Progress

NAME = "cache"
HELP = "Latents of a whole data set: made once, verified, resumable."
MAKE_EXAMPLE = "Example: [bold]calotype cache make photos/ latents/ --vae sdxl-vae --buckets sdxl --flip[/]"
STATUS_EXAMPLE = "Example: [bold]calotype cache status latents/[/]"
VERIFY_EXAMPLE = "Example: [bold]calotype cache verify latents/ --decode 16 --vae sdxl-vae[/]"
STATS_EXAMPLE = "Example: [bold]calotype cache stats latents/[/]"
REPORT_EXAMPLE = "Example: [bold]calotype cache report latents/ --vae sdxl-vae --report report/[/]"
REPAIR_EXAMPLE = "Example: [bold]calotype cache repair latents/[/]"
GC_EXAMPLE = "Example: [bold]calotype cache gc latents/[/]"


class ValueName(str, Enum):
    """What of the posterior is kept."""

    moments = "moments"
    mode = "mode"
    sample = "sample"


class CropName(str, Enum):
    """What of a picture is kept."""

    centre = "centre"
    top = "top"
    random = "random"


class EngineName(str, Enum):
    """What makes units."""

    local = "local"
    ray = "ray"


CacheArgument = Annotated[Path, typer.Argument(metavar="OUT", help="Folder of the cache.")]


def make(
    data: DataArgument,
    out: CacheArgument,
    vae: VaeOption = None,
    value: Annotated[
        ValueName, typer.Option(help="Keep the posterior's moments (mean and log-variance), its mode, or one sample.")
    ] = ValueName.moments,
    size: Annotated[
        str | None, typer.Option(metavar="SIDE", help="One size for all pictures: 512, or WIDTHxHEIGHT.")
    ] = None,
    buckets: Annotated[
        str | None,
        typer.Option(
            metavar="PRESET", help="Sizes for pictures of all shapes: sdxl, sd1, sd2, sd3, flux, SIDE or SIDE/STEP."
        ),
    ] = None,
    crop: Annotated[
        CropName, typer.Option(help="What of a picture is kept where its shape is another one.")
    ] = CropName.centre,
    flip: Annotated[bool, typer.Option("--flip", help="Encode mirrored pictures too.")] = False,
    background: BackgroundOption = "white",
    enlarge: Annotated[
        bool, typer.Option("--enlarge/--no-enlarge", help="Enlarge smaller pictures, or count them as bad.")
    ] = True,
    folders: Annotated[
        bool, typer.Option("--folders", help="Pictures without a label have their folder's name as one.")
    ] = False,
    seed: Annotated[int, typer.Option(min=0, max=2**63 - 1, help="Of samples and random crops.")] = 0,
    dtype: Annotated[Dtype, typer.Option(help="What to encode in.")] = Dtype.float32,
    store: Annotated[Dtype, typer.Option(help="What to store latents in.")] = Dtype.float16,
    part: Annotated[
        str, typer.Option(metavar="I/N", help="Make only the I-th of N parts, as in 2/4; each on a machine of its own.")
    ] = "",
    engine: Annotated[
        EngineName,
        typer.Option(help="This process, or a Ray cluster: the one that RAY_ADDRESS names, or one on this machine."),
    ] = EngineName.local,
    max_bad: Annotated[
        str,
        typer.Option(
            "--max-bad", metavar="N|P%", help="End when more pictures than these are bad; of a share, 3 may always be."
        ),
    ] = "1%",
    latent_format: FormatOption = None,
    prefix: PrefixOption = None,
    which: WeightsOption = None,
    device: DeviceOption = None,
    memory: MemoryOption = None,
    json: JsonOption = False,
) -> None:
    """Encode all pictures of DATA into OUT, or what OUT lacks of them.

    The same command goes on where it was stopped, and makes exactly what changed. Several may run at once on one OUT.
    Latents are raw, as the encoder gives them.

    With --engine ray, workers on all nodes make them, which must see OUT and DATA under the same names; --device and
    --memory are each worker's, and without --device they have a GPU each where the cluster has some.
    """
    from calotype.cache.make import allowed, job_of, make as fill
    from calotype.cache.rules import Rules
    from calotype.cache.tables import arrow
    from calotype.cache.units import of_part
    from calotype.cluster import the_ray
    from calotype.engine.budget import parse_memory

    arrow()
    if clustered := engine is EngineName.ray:
        the_ray()
    if memory is not None:
        parse_memory(memory)
    allowed(max_bad, 1)
    of_part((), part)
    rules = Rules(
        size=_size(size), buckets=buckets or "", crop=crop.value, flip=flip, background=colour(background),
        enlarge=enlarge, seed=seed,
    )  # fmt: skip
    assert rules.sizes
    require_folder(out, "OUT")
    loaded = load_vae(vae, latent_format, "cpu" if clustered else device, dtype, prefix, which, dtype)
    job = job_of(loaded, rules, value=value.value, store=store.value)
    again = f"Stopped; the same command goes on, and what is in {out} is kept."
    try:
        with _shown(json) as tell:
            outcome = fill(
                data, out, loaded, job, memory=memory, part=part, max_bad=max_bad, folders=folders,
                engine=engine.value, device=device if clustered else None, tell=tell,
            )  # fmt: skip
    except KeyboardInterrupt:
        stop(again)
    if outcome.stopped:
        stop(again)
    _report(outcome, out, part, json)


def status(out: CacheArgument, json: JsonOption = False) -> None:
    """Say what a cache holds, and what is missing."""
    from calotype.cache.status import status as look
    from calotype.cache.store import Store
    from calotype.engine.budget import in_words

    told = look(Store(out))

    def text() -> None:
        vae, rules, format_ = told["vae"], told["rules"], told["vae"]["latent_format"]
        sizes = rules["buckets"] or "x".join(map(str, rules["size"]))
        shape = f"{sizes}, crop {rules['crop']}{', flips' * rules['flip']}{', no enlarging' * (not rules['enlarge'])}"
        rows = [
            ("VAE", f"{vae['name']}, sha256 {vae['sha256'][:12]}..., f{vae['factor']}, {vae['channels']} channels"),
            ("latents", f"{told['value']}, raw, {told['store']}; format {format_['name']}; encoded in {told['dtype']}"),
            ("pictures", f"{told['data'] or 'unknown'}: {shape}"),
            ("done", f"{told['done']:,} of {told['wanted']:,}"),
            ("missing", f"{told['missing']:,}"),
            ("bad", f"{told['bad']:,}"),
            ("stale", f"{told['stale']:,}{' (calotype cache gc removes them)' * bool(told['stale'])}"),
            ("enlarged", f"{told['enlarged']:,}"),
            ("buckets", ", ".join(f"{name}: {n:,}" for name, n in told["buckets"].items()) or "none"),
            ("on the disk", f"{in_words(told['bytes'])} in {counted(told['units'], 'unit')}"),
            (
                "made by",
                "; ".join(f"{name} ({counted(n, 'unit')})" for name, n in told["made"].items()) or "nobody yet",
            ),
            ("manifest", told["manifest"]),
        ]
        table(rows)
        for name, why in told["bad_ones"][:MOST_SAID]:
            print(f"bad: {plain(name)}: {why}")
        for unit, why in list(told["broken"].items())[:MOST_SAID]:
            print(f"broken: {unit}: {why}; calotype cache repair {out} drops it")

    finish(told, as_json=json, text=text)


def verify(
    out: CacheArgument,
    decode: Annotated[int, typer.Option("--decode", min=0, help="Also decode N samples and compare the pictures.")] = 0,
    data: Annotated[
        str | None, typer.Option("--data", help="Also read the pictures there and compare their bytes.")
    ] = None,
    vae: VaeOption = None,
    latent_format: FormatOption = None,
    prefix: PrefixOption = None,
    which: WeightsOption = None,
    device: DeviceOption = None,
    memory: MemoryOption = None,
    json: JsonOption = False,
) -> None:
    """Read every file of a cache and say what is wrong; exit with 1 if anything is.

    With --decode, samples are compared with their pictures beside the VAE's own round trip of the same pixels.
    """
    from calotype.addresses import is_address
    from calotype.cache.check import verify as look
    from calotype.cache.reader import Cache, job_in
    from calotype.cache.seen import scanned_data
    from calotype.cache.store import MANIFEST, Store
    from calotype.sources import open_source

    store = Store(out)
    job = job_in(store)
    place, loaded = data or scanned_data(store), None
    if data is not None or decode:  # what can't be done is told before everything is read
        if job.rules.seed < 0:
            raise UsageError(
                f"{out}: this cache was taken over from another program, so there is nothing to make again."
            )
        if not place:
            raise UsageError(f"{out}: nothing tells where its pictures are; give --data.")
        if not is_address(place):
            open_source(place)
    if decode:
        loaded = load_vae(vae, latent_format, device, Dtype.float32, prefix, which, Dtype(job.dtype))
    with bar("Reading") as tell:
        faults = look(store, tell)
    samples: list[dict[str, Any]] = []
    others = list(faults.others)
    if data is not None or loaded is not None:
        from calotype.cache.decoded import changed, compare

        if data is not None:
            others += changed(store, data)
        if loaded is not None and not faults and store.size(MANIFEST) is not None:
            compared = compare(Cache(out), place, loaded, decode, memory)
            samples = [vars(one) for one in compared.samples]
            others += compared.faults
    document = {"cache": str(out), "units": faults.units_seen, "rows": faults.rows, "broken": faults.units,
                "faults": others, "decoded": samples}  # fmt: skip

    def text() -> None:
        for one in samples:
            print(f"{plain(one['name'])}: {one['psnr']:.2f} dB decoded, {one['own']:.2f} dB the VAE's own round trip")
        seen = f"{counted(faults.units_seen, 'unit')} with {counted(faults.rows, 'sample')}"
        print(f"{out}: {seen}: {_verdict(faults.units, others)}")

    for unit, why in list(faults.units.items())[:MOST_SAID]:
        complain(f"unit {unit}: {why}; calotype cache repair {out} drops it, and the next make makes it again.")
    for why in others:
        complain(f"{why.rstrip('.')}.")
    finish(document, as_json=json, text=text)
    if faults.units or others:
        raise typer.Exit(1)


def stats(out: CacheArgument, json: JsonOption = False) -> None:
    """Say mean and standard deviation of a cache's latents, and the factors a trainer should scale them by."""
    from calotype.cache.status import stats as look
    from calotype.cache.store import Store

    told = look(Store(out))

    def text() -> None:
        own = told["latent_format"]
        print(f"{told['samples']:,} pictures, raw latents ({told['of']}):")
        channels = zip(told["channels"]["mean"], told["channels"]["std"], strict=True)
        table([(f"channel {i}", f"mean {mean:+.4f}, std {std:.4f}") for i, (mean, std) in enumerate(channels)])
        print(f"all: mean {told['mean']:+.4f}, std {told['std']:.4f}")
        factor = told["scaling_factor"]
        print(f"scaling_factor {factor:.5f} (1/std), shift_factor {told['shift_factor']:.5f} (mean)" if factor else "")
        numbers = {key: value for key, value in own.items() if key in ("scaling_factor", "shift_factor")}
        said = ", ".join(f"{key} {value:.5f}" for key, value in numbers.items())
        print(f"the VAE's own: format {own['name']} ({own['kind']}){f', {said}' if said else ''}")

    finish(told, as_json=json, text=text)


def report(
    out: CacheArgument,
    folder: Annotated[Path, typer.Option("--report", "-o", help="Folder for index.html.")] = Path("cache-report"),
    samples: Annotated[int, typer.Option(min=0, help="Samples to decode and show, evenly from first to last.")] = 12,
    data: Annotated[
        str | None, typer.Option("--data", help="Where the pictures are.", show_default="where they were")
    ] = None,
    vae: VaeOption = None,
    latent_format: FormatOption = None,
    prefix: PrefixOption = None,
    which: WeightsOption = None,
    device: DeviceOption = None,
    memory: MemoryOption = None,
    json: JsonOption = False,
) -> None:
    """Write a page to look at: samples beside their decodes, sizes, statistics, and what could not be cached."""
    from calotype.cache.page import write_page
    from calotype.cache.reader import job_in
    from calotype.cache.store import Store

    job = job_in(Store(out))
    require_folder(folder, "--report")
    loaded = load_vae(vae, latent_format, device, Dtype.float32, prefix, which, Dtype(job.dtype)) if samples else None
    page = folder / "index.html"
    with bar("Decoding") as tell:
        notes = write_page(out, page, loaded, data=data, samples=samples, memory=memory, tell=tell)
    for note in notes[:MOST_SAID] if samples else ():
        complain(note)
    finish({"cache": str(out), "page": str(page), "notes": notes}, as_json=json, text=lambda: print(page))


def repair(out: CacheArgument, json: JsonOption = False) -> None:
    """Drop damaged units, so that the next make makes them again, and make the manifest anew."""
    from calotype.cache.check import repair as mend
    from calotype.cache.store import Store

    with bar("Reading") as tell:
        dropped, told = mend(Store(out), tell)

    def text() -> None:
        for unit, why in dropped.items():
            print(f"dropped {unit}: {why}")
        print(f"{out}: {told['done']:,} samples are there, {told['missing']:,} are missing.")

    finish(
        {"cache": str(out), "dropped": dropped, "done": told["done"], "missing": told["missing"]},
        as_json=json,
        text=text,
    )


def gc(
    out: CacheArgument,
    everything: Annotated[bool, typer.Option("--all", help="Remove the whole cache, whatever it is of.")] = False,
    json: JsonOption = False,
) -> None:
    """Remove what no picture needs: attempts that were never finished, and latents of pictures that are gone."""
    from calotype.cache.clear import empty, gc as clear
    from calotype.cache.store import Store
    from calotype.engine.budget import in_words

    if everything:
        empty(Store(out))
        told = "the cache is gone, what others have put there is not" if any(out.iterdir()) else "empty"
        finish({"cache": str(out), "all": True}, as_json=json, text=lambda: print(f"{out}: {told}."))
        return
    done = clear(Store(out))
    rows = f"{counted(done.rows, 'row')} of {counted(done.units, 'unit')}"
    words = f"removed {counted(done.files, 'stray file')} and {rows}, {in_words(done.bytes)} in all"
    finish({"cache": str(out), **vars(done)}, as_json=json, text=lambda: print(f"{out}: {words}."))


def counted(n: int, what: str) -> str:
    """As in "1 unit" and "2 units"."""
    return f"{n:,} {what}{'' if n == 1 else 's'}"


def _size(text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    return size_of(f"{text}x{text}" if text.isdecimal() else text)


def _verdict(units: dict[str, str], others: list[str]) -> str:
    if not units and not others:
        return "all as it should be."
    return f"{counted(len(units), 'damaged unit')}, {counted(len(others), 'other fault')}."


def _report(outcome: Outcome, out: Path, part: str, json: bool) -> None:
    rate = outcome.made / outcome.seconds if outcome.seconds and outcome.made else 0.0
    document = {**{key: value for key, value in vars(outcome).items() if key not in ("bad", "stopped")},
                "cache": str(out), "part": part, "bad": [vars(one) for one in outcome.bad]}  # fmt: skip

    def text() -> None:
        told = f"{out}: {outcome.held:,} of {outcome.wanted:,} pictures are there, {outcome.made:,} made now"
        print(f"{told} ({rate:.1f} a second)." if rate else f"{told}.")

    for one in outcome.bad[:MOST_SAID]:
        complain(f"{one.name}: {one.reason}")
    if (more := len(outcome.bad) - MOST_SAID) > 0:
        complain(f"{counted(more, 'more picture')} can't be cached; --json lists all.")
    if outcome.enlarged:
        complain(f"{counted(outcome.enlarged, 'picture')} had to be enlarged; --no-enlarge counts such as bad.")
    finish(document, as_json=json, text=text)


@contextmanager
def _shown(quiet: bool) -> Iterator[Any]:
    """A progress bar: pictures done, a second, the time that is left, and how many are bad."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress as Bar, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[said]}"),
        TimeRemainingColumn(),
    )  # fmt: skip
    doing = {"scan": "Looking at pictures", "make": "Encoding", "manifest": "Writing the manifest"}
    with Bar(*columns, console=console, transient=True, disable=quiet or not console.is_terminal) as shown:
        tasks: dict[str, Any] = {}

        def tell(progress: Progress) -> None:
            if progress.doing not in tasks:
                for task in tasks.values():
                    shown.update(task, visible=False)
                tasks[progress.doing] = shown.add_task(
                    doing[progress.doing], total=None, said="", completed=progress.done
                )
            task = tasks[progress.doing]
            speed = shown.tasks[shown.task_ids.index(task)].speed
            said = [f"{speed:.1f}/s"] if speed else []
            said += [f"{progress.bad:,} bad"] if progress.bad else []
            said += [counted(progress.workers, "worker")] if progress.workers is not None else []
            said += [f"waiting for {counted(progress.waiting, 'unit')} of others"] if progress.waiting else []
            shown.update(task, completed=progress.done, total=progress.total, said=", ".join(said))

        yield tell
