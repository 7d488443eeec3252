"""The VAEs among the tensors of a file: under which prefix, which are averages of which, and which one is meant.

No torch: names and shapes tell all but whether two are equal.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from calotype.errors import UsageError, WeightsError
from calotype.weights.others import Shapes, other_autoencoder

Weights = Literal["raw", "ema"]  # as trained, or averaged over the training

# What DistributedDataParallel, torch.compile, FSDP and activation checkpointing put into names, anywhere
WRAPPERS = re.compile(
    r"(?<![^.])(module|_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module|_forward_module|_ddp_module)\."
)
AVERAGED = re.compile(r"(?<![^._])(ema|averaged?|avg|swa|polyak|shadow|shadow_params)(?![^._0-9])", re.IGNORECASE)

# Of an optimiser, whose states may have the weights' names and shapes
OPTIMISER = re.compile(
    r"(?<![^._])(optim\w*|opt|(max_)?exp_avg\w*|momentum\w*|grads?|gradients)(?![^._])", re.IGNORECASE
)
NOT_AVERAGED = re.compile(
    r"(?<![^._])(non?|not|pre|before|without)[_.-]?(ema|averaged?|avg|swa)(?![^._0-9])", re.IGNORECASE
)

# The order in which networks of this kind have their parts; lists of averages without names follow it
IN_ORDER = (
    ("norm", "q", "k", "v", "proj_out"),
    ("group_norm", "to_q", "to_k", "to_v", "to_out"),
    ("group_norm", "query", "key", "value", "proj_attn"),
    ("norm1", "conv1", "norm2", "conv2"),
    ("weight", "bias"),
)

KL = re.compile(r"((?:.*?\.)?)(?:encoder|decoder)\.conv_in\.weight")
FOLDED = re.compile(r"((?:.*?\.)?)encoder\.quarter\.0\.conv1\.weight")
TINY = re.compile(r"((?:.*?\.)?)(?:taesd_)?(?:encoder|decoder)\.(?:layers\.)?[01]\.weight")
BARE = re.compile(r"((?:.*?\.)?)(?<!coder\.)(?<!layers\.)([01])\.weight")  # half a TAESD, without a name

# What belongs to a network of each kind, by names after its prefix; names may hold anything
OWN = {
    "kl": re.compile(
        r"(?s)(encoder|decoder|quant_conv|post_quant_conv)\..+|bn\.(running_(mean|var)|num_batches_tracked)"
    ),
    "folded": re.compile(r"(?s)(encoder|decoder)\..+"),
    "tiny": re.compile(r"(?s)(taesd_)?(encoder|decoder)\.(layers\.)?.+"),
    "bare": re.compile(r"(?s)[0-9]+\..+"),
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Group:
    """The tensors of one network.

    Attributes:
        keys: name within the network -> key in the file, in the file's order.
        prefix: what stands before the names.
        other: what the network is, where it is none that is read.
        averaged: whether its name says that it is an average over a training.
    """

    kind: str
    prefix: str
    keys: Mapping[str, str]
    other: str | None = None
    averaged: bool = False


@dataclass(frozen=True, kw_only=True)
class Choice:
    """What was taken from a file, and what was not."""

    group: Group
    twin: Group | None = None  # its average, or what it is the average of
    note: str = ""  # why not the average, where there is one
    others: tuple[Group, ...] = ()  # networks that are not read
    unmatched: str = ""  # where averages without names stand that are of nothing here
    beside: tuple[str, ...] = ()  # tensors of no network


def plain(keys: Sequence[str]) -> dict[str, str]:
    """Keys without what wrappers put into them -> the keys; both stay as they are where two would become one."""
    names = [WRAPPERS.sub("", key) for key in keys]
    count = Counter(names)
    return {name if count[name] == 1 else key: key for name, key in zip(names, keys, strict=True)}


def groups_in(shapes: Shapes) -> list[Group]:
    """All networks among these tensors that may be VAEs, those that are not read included."""
    names = {name: key for name, key in plain(list(shapes)).items() if not OPTIMISER.search(name)}
    kinds: dict[str, str] = {}
    for kind, pattern in (("kl", KL), ("folded", FOLDED)):
        for name in names:
            if match := pattern.fullmatch(name):
                kinds[match[1]] = kind
    for name in names:
        if (match := TINY.fullmatch(name)) and len(shapes[names[name]]) == 4:
            kinds.setdefault(match[1], "tiny")
    for name in names:
        if (match := BARE.fullmatch(name)) and len(shapes[names[name]]) == 4 and _bare(names, match[1]):
            kinds.setdefault(match[1], "bare")
    groups = []
    for prefix, kind in kinds.items():
        inside = {name.removeprefix(prefix): key for name, key in names.items() if name.startswith(prefix)}
        keys = {name: key for name, key in inside.items() if OWN[kind].fullmatch(name)}
        other = None if kind == "folded" else other_autoencoder({name: shapes[key] for name, key in inside.items()})
        averaged = _says_averaged(prefix) and "online" not in prefix
        averaged = averaged or (prefix.endswith("module.") and "n_averaged" in names)  # torch's AveragedModel
        groups.append(Group(kind=kind, prefix=prefix, keys=keys, other=other, averaged=averaged))
    if any(group.prefix.startswith("current_model_state.") for group in groups):  # Lightning's WeightAveraging
        groups = [g if g.prefix else _as_average(g) for g in groups]
    for raw in [group for group in groups if not group.averaged and group.other is None]:
        groups += [*_without_dots(names, raw), *_lists(names, shapes, raw)]
    return groups


def _says_averaged(prefix: str) -> bool:
    return bool(AVERAGED.search(NOT_AVERAGED.sub("", prefix)))


def _bare(names: Mapping[str, str], prefix: str) -> bool:
    """Whether it is half a TAESD: a convolution, then blocks; at the top of a file any row of layers may be one."""
    first, second = f"{prefix}0.weight" in names, f"{prefix}1.weight" in names
    blocks = f"{prefix}1.conv.0.weight" in names or f"{prefix}3.conv.0.weight" in names
    return first != second and (blocks or (not prefix and all(name[:1].isdigit() for name in names)))


def _as_average(group: Group) -> Group:
    return Group(kind=group.kind, prefix=group.prefix, keys=group.keys, other=group.other, averaged=True)


def _without_dots(names: Mapping[str, str], raw: Group) -> list[Group]:
    """Averages as LDM keeps them (LitEma): the names of the raw tensors, without their dots."""
    flat: dict[str, dict[str, str]] = {}
    for name, key in names.items():
        before, dot, last = name.rpartition(".")
        if _says_averaged(before):
            flat.setdefault(before + dot, {})[last] = key
    found = []
    for prefix, keys in flat.items():
        own = {}
        for name, key in raw.keys.items():
            for full in (name, raw.prefix + name, key):
                if (short := full.replace(".", "")) in keys:
                    own[name] = keys[short]
        if own and len(set(own.values())) == len(own):
            found.append(Group(kind=raw.kind, prefix=prefix, keys=own, averaged=True))
    return found


def _lists(names: Mapping[str, str], shapes: Shapes, raw: Group) -> list[Group]:
    """Averages as a list in the order of the parameters (`shadow_params` of diffusers' EMAModel and of torch_ema)."""
    lists: dict[str, dict[int, str]] = {}
    for name, key in names.items():
        if match := re.fullmatch(r"((?:.*\.)?shadow_params\.)([0-9]+)", name):
            lists.setdefault(match[1], {})[int(match[2])] = key
    own = [name for name in raw.keys if not name.startswith("bn.")]
    if not _in_order(own):  # sorted, say: the list is in the network's order, which these names no longer have
        return []
    found = []
    for prefix, members in lists.items():
        keys = [members[i] for i in sorted(members)]
        if [shapes[key] for key in keys] == [shapes[raw.keys[name]] for name in own]:
            buffers = {name: key for name, key in raw.keys.items() if name.startswith("bn.")}
            found.append(
                Group(kind=raw.kind, prefix=prefix, keys=dict(zip(own, keys, strict=True)) | buffers, averaged=True)
            )
    return found


def _in_order(names: Sequence[str]) -> bool:
    """Whether names stand as the network has them, as far as they tell: blocks counted up, parts as in `IN_ORDER`."""
    children: dict[str, dict[str, None]] = {}
    for name in names:
        steps = name.split(".")
        for i, step in enumerate(steps):
            children.setdefault(".".join(steps[:i]), {})[step] = None
    for found in map(list, children.values()):
        numbers = [int(step) for step in found if step.isdecimal()]
        if numbers != sorted(numbers):
            return False
        for order in IN_ORDER:
            places = [order.index(step) for step in found if step in order]
            if places != sorted(places):
                return False
    return True


def choose(
    shapes: Shapes,
    prefix: str | None = None,
    weights: Weights | None = None,
    same: Callable[[str, str], bool] = lambda a, b: False,
) -> Choice | None:
    """The network that is meant; None if there is none in sight.

    Args:
        prefix: of the network, where there are several.
        weights: whether its average is meant; where not given it is, if it is whole.
        same: whether two tensors, by their keys, hold the same numbers.

    Raises:
        WeightsError: if there are several, or none that is read; the message says which and how to choose.
        UsageError: if what was asked for is not there.
    """
    if weights not in (None, *get_args(Weights)):
        raise UsageError(f"There are no {weights!r} weights; choose raw or ema.")
    groups = groups_in(shapes)
    if not groups:
        return None
    mine = [group for group in groups if group.other is None]
    if prefix is not None:
        wanted = WRAPPERS.sub("", f"{prefix.rstrip('.')}." if prefix else "")
        given = f"{prefix.rstrip('.')}." if prefix else ""
        named = [group for group in groups if group.prefix == given] or [g for g in groups if g.prefix == wanted]
        if not named:
            raise UsageError(f"no VAE stands under the prefix {prefix!r}; they stand under {_prefixes(groups)}")
        if named[0].other is not None:
            raise WeightsError(f"under {named[0].prefix!r} is {named[0].other}")
        twins = [group for group in mine if _twins(shapes, named[0], group, mine)]
        mine = named if weights is None else [*named, *twins]
    if not mine:
        found = [_found(group, len(groups)) for group in sorted(groups, key=lambda group: group.prefix)]
        raise WeightsError("; ".join(dict.fromkeys(found)))
    group = _one(shapes, mine, weights, same)
    twin = next((other for other in groups if _twins(shapes, group, other, groups)), None)
    used = {key for other in groups for key in other.keys.values()}
    note = ""
    if twin is not None and twin.averaged and not _whole(shapes, twin, group):
        note = f"{len(twin.keys)} of its {len(group.keys)} tensors"
    return Choice(
        group=group,
        twin=twin,
        note=note,
        others=tuple(other for other in groups if other.other is not None),
        unmatched=next((key.rpartition(".")[0] for key in plain(list(shapes)) if _listed(key) and key not in used), ""),
        beside=tuple(name for name, key in plain(list(shapes)).items() if key not in used),
    )


def _one(shapes: Shapes, groups: list[Group], weights: Weights | None, same: Callable[[str, str], bool]) -> Group:
    raw = [group for group in groups if not group.averaged]
    averaged = [group for group in groups if group.averaged]
    if weights == "raw":
        if not raw:
            raise UsageError(
                f"there are no raw weights beside the averaged ones, which stand under {_prefixes(averaged)}"
            )
        groups = raw
    elif weights == "ema":
        groups = [group for group in averaged if _complete(shapes, group, raw)]
        if not averaged:
            listed = next((key.rpartition(".")[0] for key in shapes if _listed(key)), "")
            raise UsageError(
                f"the averaged weights, under {listed!r}, have no names and are not in the order of the raw ones; "
                f"leave --weights ema out"
                if listed
                else "there are no averaged weights in it, of this VAE at least; leave --weights ema out"
            )
        if not groups:
            raise UsageError(
                f"the averaged weights, under {_prefixes(averaged)}, are not the whole VAE; leave --weights ema out"
            )
    else:
        whole = [group for group in averaged if _complete(shapes, group, raw)]
        replaced = [r for r in raw if any(_twins(shapes, group, r, groups) for group in whole)]
        groups = [*(group for group in raw if group not in replaced), *whole] or groups
    first, *rest = groups
    if any(not _equal(first, group, same) for group in rest):
        raise WeightsError(
            f"the file holds several VAEs, under {_prefixes(groups)}; choose one with --prefix (prefix=), or write "
            f"it to a file of its own with 'calotype convert'"
        )
    return first


def _listed(key: str) -> bool:
    return re.fullmatch(r"(.*\.)?shadow_params\.[0-9]+", key) is not None


def _complete(shapes: Shapes, average: Group, raw: list[Group]) -> bool:
    """Whether an average is of a whole VAE, as far as there is a raw one to tell."""
    twins = [group for group in raw if _twins(shapes, average, group, [average, *raw])]
    return not twins or _whole(shapes, average, twins[0])


def _whole(shapes: Shapes, average: Group, raw: Group) -> bool:
    return all(name in average.keys for name in raw.keys)


def _twins(shapes: Shapes, a: Group, b: Group, groups: Sequence[Group]) -> bool:
    """Whether one is the average of the other: the same names and shapes, as far as it goes, and prefixes that fit."""
    if a.averaged == b.averaged or a.kind != b.kind:
        return False
    average, raw = (a, b) if a.averaged else (b, a)

    def fits(group: Group) -> bool:
        return average.keys.keys() <= group.keys.keys() and all(
            shapes[key] == shapes[group.keys[name]] for name, key in average.keys.items()
        )

    fitting = [group for group in groups if not group.averaged and group.kind == raw.kind and fits(group)]
    stem = _stem(average.prefix)
    named = [group for group in fitting if _stem(group.prefix) == stem]
    return raw in (named or fitting) and (len(fitting) == 1 or bool(named))


def _stem(prefix: str) -> str:
    """A prefix without the words for raw and averaged."""
    words = [word for word in re.split(r"[._]", AVERAGED.sub("", NOT_AVERAGED.sub("", prefix))) if word]
    return ".".join(word for word in words if word not in ("model", "online", "params", "state", "dict", "raw", "net"))


def _equal(a: Group, b: Group, same: Callable[[str, str], bool]) -> bool:
    return a.keys.keys() == b.keys.keys() and all(same(key, b.keys[name]) for name, key in a.keys.items())


def _found(group: Group, count: int) -> str:
    where = f"under {group.prefix!r} is" if count > 1 or group.prefix else "the file holds"
    return f"{where} {group.other}"


def _prefixes(groups: Sequence[Group]) -> str:
    return ", ".join(sorted({repr(group.prefix) for group in groups}))


def summary(keys: Sequence[str], most: int = 6) -> str:
    """'global_step, loss. (24 tensors) and 3 more', for people."""
    count: dict[str, int] = {}
    single: dict[str, str] = {}
    for key in keys:
        head, dot, _ = key.partition(".")
        count[head + dot] = count.get(head + dot, 0) + 1
        single[head + dot] = key
    parts = [single[head] if n == 1 else f"{head} ({n:,} tensors)" for head, n in count.items()]
    return ", ".join(parts[:most]) + (f" and {len(parts) - most} more" if len(parts) > most else "")
