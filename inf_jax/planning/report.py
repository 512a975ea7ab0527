"""Prints plans as tables, and explains in one line why a plan does not fit."""

from typing import Any

from inf_jax.core.console import table
from inf_jax.planning.chips import GIB


def print_plan(plan: dict[str, Any]) -> None:
    """Prints a plan."""
    batch, memory = plan["batch"], plan["hbm"]
    slices = f"{plan['slices']} x " if plan["slices"] > 1 else ""
    made_up = "" if plan["chip"]["source"].startswith("http") else "; INVENTED chip figures"
    rows = " + ".join(f"{batch['chunks']}x{r}x{batch['row_tokens']}" for r in batch["rows"])
    table(
        f"plan: {plan['objective']} on {slices}{plan['topology']}",
        [
            ("model", f"{plan['model']}, {plan['parameters']:,} parameters"),
            ("shape from", plan["model_shape_from"]),
            ("chips", f"{plan['chips']} ({plan['devices']} devices){made_up}"),
            ("chip figures from", plan["chip"]["source"]),
            ("mesh", " ".join(f"{k}={v}" for k, v in plan["mesh"].items())),
            ("step", f"{batch['examples']:,} examples, {batch['pairs']:,.0f} pairs"),
            ("grid (chunks x rows x tokens)", rows),
            ("tokens per step", f"{batch['tokens']:,.0f}, fill {batch['fill']:.1%}"),
            ("attention", plan["attention"]),
        ],
    )
    _print_notes(batch)
    keys = ("arguments", "outputs", "reused", "temp", "code", "peak", "needed")
    rows = [(key, f"{memory[key] / GIB:.2f}") for key in keys if key in memory]
    if memory.get("host"):  # not the device's
        rows.append(("in the host's memory", f"{memory['host'] / GIB:.2f}"))
    rows.append(("available", f"{memory['limit'] / GIB:.2f}"))
    verdict = "fits, free" if memory["fits"] else "DOES NOT FIT, over by"
    table("memory per device, GiB", [*rows, (verdict, f"{abs(memory['free']) / GIB:.2f}")])
    if "seconds" not in plan:
        return
    seconds, tera = plan["seconds"], {k: f"{v / 1e12:.3f}" for k, v in plan["flops"].items()}
    kernels = [
        (f"of which {name}", f"{kernel['flops'] / 1e12:.3f} in {kernel['runs']:,} runs")
        for name, kernel in sorted(plan["kernels"].items())
    ]
    table(
        "per step and device",
        [
            ("model TFLOP (formula, real tokens)", tera["model"]),
            ("products as traced, TFLOP", tera["traced"]),
            ("products as compiled, TFLOP", tera["compiled"]),
            *kernels,
            ("the same in matrix unit passes", tera["compiled_unit"]),
            ("cost_analysis (loops once), TFLOP", tera["cost_analysis_loops_once"]),
            ("memory traffic, GB", f"{plan['bytes']['memory'] / 1e9:.2f}"),
        ],
    )
    if plan["collectives"]:
        table(
            "collectives per step and device",
            [
                (
                    c["kind"],
                    c["group"] or "?",
                    c["axes"],
                    c["count"],
                    f"{c['runs']:,}",
                    f"{c['bytes'] / 2**20:,.2f}",
                    f"{c['bytes_beside_work'] / max(c['bytes'], 1):.0%}",
                    f"{c['seconds'] * 1e3:.3f}",
                )
                for c in plan["collectives"]
            ],
            ("kind", "devices", "mesh axes", "in program", "runs", "MiB", "overlapped", "ms"),
        )
    rates, compiler = plan["rates"], seconds["compiler"]
    estimated = "reached" in plan["chip"]
    table(
        "predicted, at rates that programs reach" if estimated else "predicted: a lower bound",
        [
            ("compute at peak, s", f"{seconds['compute']:.4f}"),
            ("memory at its rate, s", f"{seconds['memory']:.4f}"),
            ("instruction by instruction, s", f"{seconds['work']:.4f}"),
            ("interconnect, overlapped, s", f"{seconds['hidden']:.4f}"),
            ("interconnect, exposed, s", f"{seconds['exposed']:.4f}"),
            *([("link to the host, s", f"{seconds['host']:.4f}")] if seconds.get("host") else []),
            ("step, s", f"{seconds['step']:.4f}"),
            *([("step by the compiler's cycles, s", f"{compiler:.4f}")] if compiler else []),
            ("MFU", f"{rates['mfu']:.1%}"),
            ("examples/s", f"{rates['examples_per_second']:,.1f}"),
            ("tokens/s", f"{rates['tokens_per_second']:,.0f}"),
            (f"the run, {plan['steps']:,} steps: tokens", f"{rates['run_tokens']:,.0f}"),
            ("hours", f"{rates['run_hours']:.3f}"),
            ("chip hours", f"{rates['run_chip_hours']:.1f}"),
        ],
    )


def compare(plans: list[dict[str, Any]]) -> None:
    """Prints plans side by side."""
    rows = []
    for plan in plans:
        memory, predicted = plan["hbm"], ("",) * 5
        if "seconds" in plan:
            rates = plan["rates"]
            predicted = (
                f"{plan['seconds']['step']:.4f}",
                f"{rates['mfu']:.1%}",
                f"{rates['examples_per_second']:,.0f}",
                f"{rates['run_hours']:.2f}",
                f"{rates['run_chip_hours']:.1f}",
            )
        name = f"{plan['slices']} x {plan['topology']}" if plan["slices"] > 1 else plan["topology"]
        gib = f"{memory['needed'] / GIB:.2f} of {memory['limit'] / GIB:.2f}"
        fits = "yes" if memory["fits"] else "NO"
        rows.append((name, plan["chips"], gib, fits, *predicted))
    _print_notes(plans[0]["batch"])
    header = ("chips", "number", "GiB", "fits", "s per step", "MFU", "examples/s", "h", "chip h")
    table(f"{plans[0]['model']}, {plans[0]['batch']['examples']:,} examples per step", rows, header)


FASTEST_HEADER = ("s per step", "MFU", "GiB", "compiled / model TFLOP", "flags")


def fastest_row(plan: dict[str, Any]) -> tuple[str, str, str, str]:
    """(seconds of a step, MFU, GiB needed and available, compiled over model FLOPs), the first
    cells below FASTEST_HEADER; where it does not fit, the GiB alone."""
    memory = plan["hbm"]
    gib = f"{memory['needed'] / GIB:.2f} of {memory['limit'] / GIB:.2f}"
    if not memory["fits"] or "seconds" not in plan:
        return "does not fit", "", gib, ""
    flops = plan["flops"]
    ratio = f"{flops['compiled'] / flops['model']:.2f}"
    return f"{plan['seconds']['step']:.4f}", f"{plan['rates']['mfu']:.1%}", gib, ratio


def _print_notes(batch: dict[str, Any]) -> None:
    print(f"lengths {batch['note']}\n")
    if batch["warning"]:
        print(f"WARNING: {batch['warning']}\n")


def unfit(plan: dict[str, Any]) -> str:
    """One line on a plan that does not fit: by how much, and what may help."""
    memory = plan["hbm"]
    helps = "; ".join(f"--config.{o['key']}={o['value']} ({o['why']})" for o in plan["advice"])
    return (
        f"{plan['topology']}: a step needs {memory['needed'] / GIB:.2f} GiB of a device's "
        f"{memory['limit'] / GIB:.2f}, {-memory['free'] / GIB:.2f} GiB too much; what may help: "
        f"{helps or 'more chips'}; or a smaller train.batch_size (--search=batch_size finds it)"
    )
