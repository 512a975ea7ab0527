"""What `plan` prints: tables of one plan or of several, and the line on one that does not fit."""

from typing import Any

from inf_jax.core.console import table

GIB = 2**30


def show(found: dict[str, Any]) -> None:
    """Prints a plan."""
    batch, memory = found["batch"], found["hbm"]
    slices = f"{found['slices']} x " if found["slices"] > 1 else ""
    made_up = "" if found["chip"]["source"].startswith("http") else "; figures of the chip MADE UP"
    table(
        f"plan: {found['objective']} on {slices}{found['topology']}",
        [
            ("model", f"{found['model']}, {found['parameters']:,} parameters"),
            ("shape from", found["model_shape_from"]),
            ("chips", f"{found['chips']} ({found['devices']} devices){made_up}"),
            ("chip figures from", found["chip"]["source"]),
            ("mesh", " ".join(f"{k}={v}" for k, v in found["mesh"].items())),
            ("a step", f"{batch['examples']:,} examples, {batch['pairs']:,.0f} pairs"),
            (
                "grid (chunks x rows x tokens)",
                " + ".join(f"{batch['chunks']}x{r}x{batch['row_tokens']}" for r in batch["rows"]),
            ),
            ("tokens a step", f"{batch['tokens']:,.0f}, fill {batch['fill']:.1%}"),
            ("attention", found["attention"]),
        ],
    )
    print(f"lengths {batch['note']}\n")
    gib = lambda key: f"{memory[key] / GIB:.2f}"  # noqa: E731
    keys = [k for k in ("arguments", "outputs", "reused", "temp", "code", "peak") if k in memory]
    table(
        "memory of a device, GiB",
        [
            *((key, gib(key)) for key in keys),
            ("needed", gib("needed")),
            ("there is", gib("limit")),
            (
                "fits" if memory["fits"] else "DOES NOT FIT, over by",
                f"{abs(memory['free']) / GIB:.2f}",
            ),
        ],
    )
    if "seconds" not in found:
        return
    flops, seconds = found["flops"], found["seconds"]
    table(
        "a step on a device",
        [
            ("model TFLOP (formula, real tokens)", f"{flops['model'] / 1e12:.3f}"),
            ("products as traced, TFLOP", f"{flops['traced'] / 1e12:.3f}"),
            ("products as compiled, TFLOP", f"{flops['compiled'] / 1e12:.3f}"),
            *(
                (f"of it {name}", f"{k['flops'] / 1e12:.3f} in {k['runs']:,} runs")
                for name, k in sorted(found["kernels"].items())
            ),
            ("the same in passes of the matrix unit", f"{flops['compiled_unit'] / 1e12:.3f}"),
            (
                "cost_analysis (loops once), TFLOP",
                f"{flops['cost_analysis_loops_once'] / 1e12:.3f}",
            ),
            ("memory traffic, GB", f"{found['bytes']['memory'] / 1e9:.2f}"),
        ],
    )
    if found["collectives"]:
        table(
            "collectives of a step, a device",
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
                for c in found["collectives"]
            ],
            ("kind", "devices", "along", "in the program", "runs", "MiB", "beside work", "ms"),
        )
    rates, compiler = found["rates"], seconds["compiler"]
    table(
        "predicted (a roofline: a bound from below)",
        [
            ("compute at peak, s", f"{seconds['compute']:.4f}"),
            ("memory at its rate, s", f"{seconds['memory']:.4f}"),
            ("instruction by instruction, s", f"{seconds['work']:.4f}"),
            ("interconnect beside work, s", f"{seconds['hidden']:.4f}"),
            ("interconnect waited for, s", f"{seconds['exposed']:.4f}"),
            ("a step, s", f"{seconds['step']:.4f}"),
            *([("a step by the compiler's cycles, s", f"{compiler:.4f}")] if compiler else []),
            ("MFU", f"{rates['mfu']:.1%}"),
            ("examples/s", f"{rates['examples_per_second']:,.1f}"),
            ("tokens/s", f"{rates['tokens_per_second']:,.0f}"),
            (f"the run, {found['steps']:,} steps: tokens", f"{rates['run_tokens']:,.0f}"),
            ("hours", f"{rates['run_hours']:.3f}"),
            ("chip hours", f"{rates['run_chip_hours']:.1f}"),
        ],
    )


def compare(plans: list[dict[str, Any]]) -> None:
    """Prints plans side by side."""
    rows = []
    for found in plans:
        memory, ran = found["hbm"], "seconds" in found
        name = (
            f"{found['slices']} x {found['topology']}" if found["slices"] > 1 else found["topology"]
        )
        rows.append(
            (
                name,
                found["chips"],
                f"{memory['needed'] / GIB:.2f} of {memory['limit'] / GIB:.2f}",
                "yes" if memory["fits"] else "NO",
                f"{found['seconds']['step']:.4f}" if ran else "",
                f"{found['rates']['mfu']:.1%}" if ran else "",
                f"{found['rates']['examples_per_second']:,.0f}" if ran else "",
                f"{found['rates']['run_hours']:.2f}" if ran else "",
                f"{found['rates']['run_chip_hours']:.1f}" if ran else "",
            )
        )
    print(f"lengths {plans[0]['batch']['note']}\n")
    header = ("chips", "number", "GiB", "fits", "s a step", "MFU", "examples/s", "h", "chip h")
    table(f"{plans[0]['model']}, {plans[0]['batch']['examples']:,} examples a step", rows, header)


def unfit(found: dict[str, Any]) -> str:
    """One line: by how much it does not fit, and what may help."""
    memory = found["hbm"]
    helps = "; ".join(f"--config.{o['key']}={o['value']} ({o['why']})" for o in found["advice"])
    return (
        f"{found['topology']}: a step needs {memory['needed'] / GIB:.2f} GiB of a device's "
        f"{memory['limit'] / GIB:.2f}, {-memory['free'] / GIB:.2f} GiB too much; what may help: "
        f"{helps or 'more chips'}; or a smaller train.batch_size (--search=batch_size finds it)"
    )
