"""Prints plans as tables, and says in one line why a plan does not fit."""

from typing import Any

from inf_jax.core.console import table

GIB = 2**30


def show(plan: dict[str, Any]) -> None:
    """Prints a plan."""
    batch, memory = plan["batch"], plan["hbm"]
    slices = f"{plan['slices']} x " if plan["slices"] > 1 else ""
    made_up = "" if plan["chip"]["source"].startswith("http") else "; INVENTED chip figures"
    table(
        f"plan: {plan['objective']} on {slices}{plan['topology']}",
        [
            ("model", f"{plan['model']}, {plan['parameters']:,} parameters"),
            ("shape from", plan["model_shape_from"]),
            ("chips", f"{plan['chips']} ({plan['devices']} devices){made_up}"),
            ("chip figures from", plan["chip"]["source"]),
            ("mesh", " ".join(f"{k}={v}" for k, v in plan["mesh"].items())),
            ("step", f"{batch['examples']:,} examples, {batch['pairs']:,.0f} pairs"),
            (
                "grid (chunks x rows x tokens)",
                " + ".join(f"{batch['chunks']}x{r}x{batch['row_tokens']}" for r in batch["rows"]),
            ),
            ("tokens per step", f"{batch['tokens']:,.0f}, fill {batch['fill']:.1%}"),
            ("attention", plan["attention"]),
        ],
    )
    print(f"lengths {batch['note']}\n")
    gib = lambda key: f"{memory[key] / GIB:.2f}"  # noqa: E731
    keys = [k for k in ("arguments", "outputs", "reused", "temp", "code", "peak") if k in memory]
    table(
        "memory per device, GiB",
        [
            *((key, gib(key)) for key in keys),
            ("needed", gib("needed")),
            ("available", gib("limit")),
            (
                "fits" if memory["fits"] else "DOES NOT FIT, over by",
                f"{abs(memory['free']) / GIB:.2f}",
            ),
        ],
    )
    if "seconds" not in plan:
        return
    flops, seconds = plan["flops"], plan["seconds"]
    table(
        "per step and device",
        [
            ("model TFLOP (formula, real tokens)", f"{flops['model'] / 1e12:.3f}"),
            ("products as traced, TFLOP", f"{flops['traced'] / 1e12:.3f}"),
            ("products as compiled, TFLOP", f"{flops['compiled'] / 1e12:.3f}"),
            *(
                (f"of which {name}", f"{k['flops'] / 1e12:.3f} in {k['runs']:,} runs")
                for name, k in sorted(plan["kernels"].items())
            ),
            ("the same in matrix unit passes", f"{flops['compiled_unit'] / 1e12:.3f}"),
            (
                "cost_analysis (loops once), TFLOP",
                f"{flops['cost_analysis_loops_once'] / 1e12:.3f}",
            ),
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
    table(
        "predicted (roofline: a lower bound)",
        [
            ("compute at peak, s", f"{seconds['compute']:.4f}"),
            ("memory at its rate, s", f"{seconds['memory']:.4f}"),
            ("instruction by instruction, s", f"{seconds['work']:.4f}"),
            ("interconnect, overlapped, s", f"{seconds['hidden']:.4f}"),
            ("interconnect, exposed, s", f"{seconds['exposed']:.4f}"),
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
        memory, ran = plan["hbm"], "seconds" in plan
        name = f"{plan['slices']} x {plan['topology']}" if plan["slices"] > 1 else plan["topology"]
        rows.append(
            (
                name,
                plan["chips"],
                f"{memory['needed'] / GIB:.2f} of {memory['limit'] / GIB:.2f}",
                "yes" if memory["fits"] else "NO",
                f"{plan['seconds']['step']:.4f}" if ran else "",
                f"{plan['rates']['mfu']:.1%}" if ran else "",
                f"{plan['rates']['examples_per_second']:,.0f}" if ran else "",
                f"{plan['rates']['run_hours']:.2f}" if ran else "",
                f"{plan['rates']['run_chip_hours']:.1f}" if ran else "",
            )
        )
    print(f"lengths {plans[0]['batch']['note']}\n")
    header = ("chips", "number", "GiB", "fits", "s per step", "MFU", "examples/s", "h", "chip h")
    table(f"{plans[0]['model']}, {plans[0]['batch']['examples']:,} examples per step", rows, header)


def unfit(plan: dict[str, Any]) -> str:
    """One line: by how much it does not fit, and what may help."""
    memory = plan["hbm"]
    helps = "; ".join(f"--config.{o['key']}={o['value']} ({o['why']})" for o in plan["advice"])
    return (
        f"{plan['topology']}: a step needs {memory['needed'] / GIB:.2f} GiB of a device's "
        f"{memory['limit'] / GIB:.2f}, {-memory['free'] / GIB:.2f} GiB too much; what may help: "
        f"{helps or 'more chips'}; or a smaller train.batch_size (--search=batch_size finds it)"
    )
