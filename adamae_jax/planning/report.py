"""What a plan says, as a table for people."""

from ml_collections import ConfigDict

from adamae_jax.planning.plan import GPU_FRACTION, Plan
from adamae_jax.training.partitioning import FSDP

SMALL = 1000  # bytes in a step; what is less is left out
UNITS = ("", "k", "M", "G", "T", "P", "E")


def short(value: float, unit: str = "B") -> str:
    """Returns a number with three digits and the prefix of its thousands: ``12.6 GB``."""
    step = 0
    while abs(value) >= 999.5 and step + 1 < len(UNITS):
        value, step = value / 1000, step + 1
    return f"{value:.3g} {UNITS[step]}{unit}".rstrip()


def table(plan: Plan) -> str:
    """Returns the plan as lines of name and value."""
    rows = [*_shape(plan), *_memory(plan), *_work(plan), *_communication(plan), *_time(plan)]
    width = max(len(name) for name, _ in rows)
    return "\n".join(f"{name:<{width}}  {value}" for name, value in rows)


def _shape(plan: Plan) -> list[tuple[str, str]]:
    axes = " x ".join(f"{axis} {size}" for axis, size in plan.mesh.items() if size > 1)
    return [
        ("topology", f"{plan.topology}: {plan.chips} chips, {plan.hosts} host(s), {axes or '1'}"),
        (
            "global batch",
            f"{plan.batch_size:,} clips: {plan.clips_at_once} at once on a chip, "
            f"accumulation {plan.accumulation}",
        ),
        (
            "model",
            f"{short(plan.parameters, '')} parameters, {plan.dtype}, attention {plan.attention}"
            + ("" if plan.remat == "none" else f", remat {plan.remat}")
            + ("" if plan.mask_ratio is None else f", mask_ratio {plan.mask_ratio}"),
        ),
    ]


def _memory(plan: Plan) -> list[tuple[str, str]]:
    limit = f" of {short(plan.memory_limit)}" if plan.memory_limit else ""
    if plan.memory is None:
        return [("bytes a chip", f"more than{limit or ' there are'}: {plan.compiler_says}")]
    memory = plan.memory
    share = f" ({memory.total / plan.memory_limit:.0%})" if plan.memory_limit else ""
    return [
        ("bytes a chip", f"{short(memory.total)}{limit}{share}"),
        ("  arguments", f"{short(memory.arguments)}"),
        ("  temporaries", f"{short(memory.temporaries)}"),
        (
            "  output",
            f"{short(memory.output)}, {short(memory.aliased)} in the arguments' place",
        ),
        ("  program", f"{short(memory.code)}"),
    ]


def _work(plan: Plan) -> list[tuple[str, str]]:
    per_clip = short(plan.model_flops / plan.batch_size, "FLOP")
    rows = [
        ("work of a step", f"{short(plan.model_flops, 'FLOP')}, {per_clip} a clip"),
        ("  with what is computed again", short(plan.program_flops, "FLOP")),
    ]
    if plan.compiler_flops is not None:
        counted = f"{short(plan.compiler_flops, 'FLOP')} a chip; it takes a loop's body once"
        rows.append(("  the compiler counts", counted))
    return rows


def _communication(plan: Plan) -> list[tuple[str, str]]:
    if plan.memory is None:
        return []
    rows = [
        (
            f"{one.kind} of {one.dtype}",
            f"{short(one.bytes)} a chip in {one.count} operation(s), among {one.group}",
        )
        for one in plan.collectives
        if one.bytes >= SMALL
    ]
    kernels = ", ".join(f"{name} x {count}" for name, count in plan.kernels.items())
    return [
        *(rows or [("between chips", "nothing")]),
        ("memory traffic", f"{short(plan.traffic)} a chip"),
        ("kernels called", kernels or "none"),
    ]


def _time(plan: Plan) -> list[tuple[str, str]]:
    rows = []
    if plan.step_seconds and plan.clips_per_second and plan.utilization:
        parts = ", ".join(f"{name} {1e3 * value:.1f}" for name, value in plan.seconds.items())
        rows = [
            ("a step, at least", f"{1e3 * plan.step_seconds:.1f} ms ({parts})"),
            ("clips a second, at most", f"{plan.clips_per_second:,.0f}"),
            ("model FLOPs utilisation, at most", f"{plan.utilization:.0%}"),
        ]
    return [*rows, ("compiled in", f"{plan.compile_seconds:.0f} s")]


def verdict(plan: Plan, config: ConfigDict) -> str:
    """Returns one line: whether it fits and, where it does not, what to change.

    Args:
      plan: of the config.
      config: the experiment.
    """
    if plan.memory_limit is None and plan.memory is not None:
        return "compiled; what memory there is, is not known: give --memory_gb=N to compare"
    if plan.fits:
        assert plan.memory is not None and plan.memory_limit is not None  # else it had not fitted
        line = "fits"
        on_gpu = plan.topology.partition(":")[0] in ("a100", "h100", "h200")
        if on_gpu and plan.memory.total > GPU_FRACTION * plan.memory_limit:
            line += (
                f"; JAX takes {GPU_FRACTION:.0%} of a GPU's memory: set "
                "XLA_PYTHON_CLIENT_MEM_FRACTION=.95"
            )
        return line
    needs = f"{short(plan.memory.total)}" if plan.memory else "more memory than there is"
    has = f" of {short(plan.memory_limit)}" if plan.memory_limit else ""
    return f"does not fit: a chip needs {needs}{has}; try {', or '.join(changes(plan, config))}"


def changes(plan: Plan, config: ConfigDict) -> list[str]:
    """Returns options that make a step need less memory, in the order in which to try them."""
    found = []
    gpu_or_tpu = not plan.topology.startswith("cpu")
    if config.model.attention == "xla" and gpu_or_tpu:
        found.append("--config.model.attention=auto")
    parts = plan.batch_size // plan.accumulation // plan.clips_at_once
    for accumulation in range(plan.accumulation + 1, plan.batch_size // parts + 1):
        if plan.batch_size % (accumulation * parts) == 0:
            found.append(f"--config.optimizer.accumulation={accumulation}")
            break
    if config.model.remat == "none":
        found.append("--config.model.remat=elementwise")
    elif config.model.remat == "elementwise":
        found.append("--config.model.remat=full")
    if plan.mesh[FSDP] == 1 and plan.chips > 1:
        found.append(f"--config.mesh.data=1 --config.mesh.fsdp={plan.chips}")
    return found or ["more chips"]
