"""Single layers: the engine's kernels against torch, SparseProp and SparseLab.

    python benchmarks/engine_layers.py --threads 1
    python benchmarks/engine_layers.py --threads 2 --peers

First every product of a layer (output, input gradient, weight gradient) against torch in the
faster of its two memory formats, the kernels in their own layout. Then, with --peers, the layer as
a module, forward and backward, plain tensors in and out: so the engine pays for changing the
layout twice, which it does not do within a network.

The peers are optional and in no list of dependencies, because they want building:

    pip install setuptools pybind11 scipy
    pip install --no-build-isolation sparseprop==0.1.14
    pip install sparselab==0.2.2

SparseProp has linear layers and convolutions of stride 1 and 2 with square kernels; of its two
ways to vectorise the one that is faster in a trial is timed, as it chooses itself. SparseLab has
linear layers only. Each of the three brings an OpenMP of its own, so the number of threads is set
before anything is loaded.
"""

from __future__ import annotations

import argparse
import datetime
import importlib
import json
import os
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    import torch
    from torch import nn

RESULTS = Path(__file__).parent / "results"
DENSITIES = (0.5, 0.2, 0.1, 0.05, 0.02, 0.01)
PRODUCTS = ("forward", "input", "weight")


class Shape(NamedTuple):
    """A layer: channels in and out, kernel, stride, pixels a side of its input; 0 for linear."""

    inputs: int
    outputs: int
    kernel: int = 1
    stride: int = 1
    side: int = 0

    @property
    def name(self) -> str:
        """For example 64->128 k3 s2 @32."""
        words = f"{self.inputs}->{self.outputs}"
        return words if not self.side else f"{words} k{self.kernel} s{self.stride} @{self.side}"


LAYERS = (
    Shape(64, 64, 3, 1, 32),
    Shape(64, 128, 3, 1, 16),
    Shape(128, 128, 3, 1, 16),
    Shape(128, 256, 3, 1, 8),
    Shape(256, 256, 3, 1, 8),
    Shape(256, 512, 3, 1, 4),
    Shape(512, 512, 3, 1, 4),
    Shape(512, 512, 3, 1, 2),
    Shape(64, 128, 3, 2, 32),
    Shape(128, 256, 3, 2, 16),
    Shape(256, 512, 3, 2, 8),
    Shape(64, 128, 1, 2, 32),
    Shape(128, 256, 1, 2, 16),
    Shape(256, 512, 1, 2, 8),
    Shape(1024, 4096),
    Shape(4096, 1024),
)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--densities", type=float, nargs="+", default=DENSITIES)
    parser.add_argument("--only", type=int, nargs="+", help="numbers of layers, from 0")
    parser.add_argument("--peers", action="store_true", help="SparseProp and SparseLab too")
    parser.add_argument("--least-seconds", type=float, default=0.1)
    parser.add_argument("--out", type=Path)
    chosen = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = str(chosen.threads)
    import torch

    from equipoise.speed.machine import describe_machine, in_words, load_average

    torch.set_num_threads(chosen.threads)
    layers = LAYERS if chosen.only is None else [LAYERS[number] for number in chosen.only]
    today = datetime.datetime.now(datetime.UTC).date()
    out = chosen.out or RESULTS / f"{today}-layers-{chosen.threads}-threads.json"
    peers = {name: load(name) for name in ("sparseprop", "sparselab")} if chosen.peers else {}
    results: dict[str, Any] = {
        "format": 1,
        "machine": describe_machine("sparseprop", "sparselab"),
        "threads": chosen.threads,
        "batch_size": chosen.batch_size,
        "rounds": chosen.rounds,
        "load": {"before": load_average(), "after": None},
        "missing_peers": {name: why for name, why in peers.items() if isinstance(why, str)},
        "layers": [],
    }
    print(in_words(results["machine"]), f"{chosen.threads} threads", results["missing_peers"])
    for shape in layers:
        for density in chosen.densities:
            found = measure(shape, density, chosen, peers)
            results["layers"].append(found)
            results["load"]["after"] = load_average()
            out.parent.mkdir(parents=True, exist_ok=True)
            out.write_text(json.dumps(results, indent=1) + "\n")
            print(line(found), flush=True)
    out.with_suffix(".md").write_text(markdown(results))
    print(f"Wrote {out} and {out.with_suffix('.md')}.")


def load(name: str) -> Any:
    """A peer, or why there is none."""
    try:
        return importlib.import_module(f"{name}.modules" if name == "sparseprop" else name)
    except (ImportError, OSError) as error:
        return f"{type(error).__name__}: {error}"


def measure(
    shape: Shape, density: float, chosen: argparse.Namespace, peers: dict[str, Any]
) -> dict[str, Any]:
    """All products and modules of one layer, in turns."""
    import torch

    from equipoise.speed.laps import Arm, fastest, interleaved, ratio, seconds

    torch.manual_seed(0)
    layer = masked_layer(shape, density)
    work, notes = products(shape, layer, chosen.batch_size)
    modules, refused = module_arms(shape, layer, chosen.batch_size, peers)
    laps = interleaved(
        {name: Arm(step) for name, step in (work | modules).items()},
        rounds=chosen.rounds,
        warmup=2,
        least_seconds=chosen.least_seconds,
    )
    found: dict[str, Any] = {
        "layer": shape.name,
        "density": int((layer.weight != 0).sum()) / layer.weight.numel(),
        "way": notes,
        "refused": refused,
        "laps": {name: [list(lap) for lap in each] for name, each in laps.items()},
    }
    for clock in ("wall", "cpu"):
        best = {
            product: fastest(laps, [n for n in laps if n.startswith(f"torch {product}")], clock)
            for product in PRODUCTS
        }
        times = {
            product: list(
                ratio(
                    seconds(laps[best[product]], clock), seconds(laps[f"engine {product}"], clock)
                )
            )
            for product in PRODUCTS
        }
        total = ratio(
            [sum(x) for x in zip(*(seconds(laps[b], clock) for b in best.values()), strict=True)],
            [
                sum(x)
                for x in zip(*(seconds(laps[f"engine {p}"], clock) for p in PRODUCTS), strict=True)
            ],
        )
        found[clock] = {"times": times, "total": list(total)}
        if peers:
            engine = seconds(laps["engine module"], clock)
            groups = {
                name: fastest(laps, ways, clock)
                for name in ("torch", "sparseprop", "sparselab")
                if (ways := [n for n in modules if n.startswith(f"{name} module")])
            }
            found[clock]["module"] = {
                name: list(ratio(seconds(laps[way], clock), engine)) for name, way in groups.items()
            }
    return found


def masked_layer(shape: Shape, density: float) -> nn.Conv2d | nn.Linear:
    """A plain layer of which exactly this share of the weights is not zero."""
    import torch
    from torch import nn

    from equipoise.topology import Topology

    if shape.side:
        pad = shape.kernel // 2
        layer: nn.Conv2d | nn.Linear = nn.Conv2d(
            shape.inputs, shape.outputs, shape.kernel, shape.stride, pad, bias=False
        )
    else:
        layer = nn.Linear(shape.inputs, shape.outputs, bias=False)
    if density < 1.0:
        Topology(nn.Sequential(layer), sparsity=1.0 - density, distribution="uniform")
    assert torch.isfinite(layer.weight).all()
    return layer


def maps_of(shape: Shape, batch: int) -> tuple[torch.Tensor, torch.Tensor]:
    """An input, and a gradient of the output, with four dimensions."""
    import torch

    side = shape.side or 1
    out = (side + 2 * (shape.kernel // 2) - shape.kernel) // shape.stride + 1
    return (
        torch.randn(batch, shape.inputs, side, side),
        torch.randn(batch, shape.outputs, out, out),
    )


def products(
    shape: Shape, layer: nn.Conv2d | nn.Linear, batch: int
) -> tuple[dict[str, Callable[[], object]], str]:
    """The three products by torch in both formats and by the kernels, and their way in words."""
    import torch

    from equipoise.engine.choice import choose_way, machine_memory
    from equipoise.engine.convolution import Plan, convolve, input_gradient, weight_gradient
    from equipoise.engine.explain import way_in_words
    from equipoise.engine.layers import geometry_of
    from equipoise.engine.maps import Form, convert

    geometry = geometry_of(layer)
    x, dy = maps_of(shape, batch)
    weight = layer.weight.detach()
    index = weight.flatten().nonzero().squeeze(1)
    rows = columns = shape.side or 1
    timed = choose_way(geometry, index, rows, columns, batch, machine_memory())
    wide = timed.way.wide
    border = 0 if wide else geometry.border
    outer = 0 if wide else geometry.gradient_border(rows, columns)
    plan = Plan(geometry, index, timed.way, rows, columns, border, outer)
    values = weight.flatten()[index].clone()
    inner_maps = convert(x, Form(batch, shape.inputs, rows, columns, border, wide))
    outer_maps = convert(dy, plan.out_form(batch, outer))
    work: dict[str, Callable[[], object]] = {
        "engine forward": partial(convolve, plan, values, inner_maps, 0),
        "engine input": partial(input_gradient, plan, values, outer_maps),
        "engine weight": partial(weight_gradient, plan, inner_maps, outer_maps),
    }
    if not shape.side:
        flat, back = x.flatten(1), dy.flatten(1)
        work |= {
            "torch forward": lambda: flat @ weight.t(),
            "torch input": lambda: back @ weight,
            "torch weight": lambda: back.t() @ flat,
        }
        return work, way_in_words(timed.way, density=index.numel() / weight.numel())
    for name, kind in (("", torch.contiguous_format), (" cl", torch.channels_last)):
        a, b, w = (t.contiguous(memory_format=kind) for t in (x, dy, weight))
        sides = (geometry.stride, geometry.padding, geometry.dilation)
        work[f"torch forward{name}"] = partial(torch.conv2d, a, w, None, *sides, 1)
        for product, wanted in (("input", (True, False, False)), ("weight", (False, True, False))):
            work[f"torch {product}{name}"] = partial(
                torch.ops.aten.convolution_backward,
                *(b, a, w, None, *sides, False, (0, 0), 1, wanted),
            )
    return work, way_in_words(timed.way, density=index.numel() / weight.numel())


def module_arms(
    shape: Shape, layer: nn.Conv2d | nn.Linear, batch: int, peers: dict[str, Any]
) -> tuple[dict[str, Callable[[], object]], dict[str, str]]:
    """Forward and backward of the layer as a module, by everybody who has it; and who has not."""
    import copy

    import torch

    from equipoise.engine.choice import choose_way, machine_memory
    from equipoise.engine.layers import compact_layer, geometry_of

    if not peers:
        return {}, {}
    x, dy = maps_of(shape, batch)
    if not shape.side:
        x, dy = x.flatten(1), dy.flatten(1)
    index = layer.weight.detach().flatten().nonzero().squeeze(1)
    side = shape.side or 1
    way = choose_way(geometry_of(layer), index, side, side, batch, machine_memory()).way
    arms = {
        "torch module": both_ways(layer, x, dy),
        "engine module": both_ways(compact_layer(layer, index, way), x, dy),
    }
    if shape.side:
        last: Any = copy.deepcopy(layer).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        a, b = (t.contiguous(memory_format=torch.channels_last) for t in (x, dy))
        arms["torch module cl"] = both_ways(last, a, b)
    expected = outcome(layer, x, dy)
    tried: dict[str, Callable[[], object]] = {}
    refused = {name: why for name, why in peers.items() if isinstance(why, str)}
    for name, module in peer_modules(shape, layer, peers).items():
        try:
            got = outcome(module, x, dy)
            for what, mine, its in zip(("output", "input gradient"), expected, got, strict=True):
                if not torch.allclose(mine, its, atol=1e-3, rtol=1e-3):
                    raise ValueError(f"its {what} differs by {float((mine - its).abs().max()):.2g}")
            tried[name] = both_ways(module, x, dy)
        except (RuntimeError, ValueError, AssertionError, TypeError) as error:
            refused[name] = f"{type(error).__name__}: {error}"
    for peer in ("sparseprop", "sparselab"):
        ways = [name for name in tried if name.startswith(peer)]
        if ways:
            best = min(ways, key=lambda name: trial(tried[name]))
            arms[best] = tried[best]
    return arms, refused


def peer_modules(
    shape: Shape, layer: nn.Conv2d | nn.Linear, peers: dict[str, Any]
) -> dict[str, Any]:
    """The layer as the peers have it."""
    found: dict[str, Any] = {}
    prop, lab = peers["sparseprop"], peers["sparselab"]
    weight = layer.weight.detach()
    if not isinstance(prop, str) and shape.side:
        for over in (False, True):
            name = f"sparseprop module {'over maps' if over else 'over batch'}"
            found[name] = prop.SparseConv2d.from_dense(layer, vectorizing_over_on=over)
    elif not isinstance(prop, str):
        found["sparseprop module"] = prop.SparseLinear(weight)
    if not isinstance(lab, str) and not shape.side:
        found["sparselab module"] = sparselab_layer(lab, weight)
    return found


def sparselab_layer(lab: Any, weight: torch.Tensor) -> Any:
    """SparseLab's linear layer with given weights, for which it has no constructor."""
    import numpy
    import torch

    outputs, inputs = weight.shape
    module = lab.SparseLinear(inputs, outputs, bias=False, sparsity=0.999)
    module._csr = lab.PaddedCSR.from_dense(weight)
    # Its parameter is a view of the memory of its matrix.
    module._values = torch.nn.Parameter(torch.from_numpy(numpy.asarray(module._csr.values)))
    return module


def both_ways(module: Any, x: torch.Tensor, dy: torch.Tensor) -> Callable[[], object]:
    """Forward and backward, with a gradient of the input."""
    x = x.detach().clone().requires_grad_()  # keeps the memory format

    def run() -> None:
        x.grad = None
        for parameter in module.parameters():
            parameter.grad = None
        module(x).backward(dy)

    return run


def trial(run: Callable[[], object]) -> float:
    """Seconds of the faster one of two calls."""
    found = []
    for _ in range(2):
        start = time.perf_counter()
        run()
        found.append(time.perf_counter() - start)
    return min(found)


def outcome(module: Any, x: torch.Tensor, dy: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Output and input gradient."""
    x = x.detach().clone().requires_grad_()
    out = module(x)
    out.backward(dy)
    assert x.grad is not None
    return out.detach(), x.grad


def line(found: dict[str, Any]) -> str:
    """One layer at one density."""
    times = found["wall"]["times"]
    words = f"{found['layer']:22} {100 * found['density']:5.1f} %  " + "  ".join(
        f"{name} {times[name][0]:6.2f}" for name in PRODUCTS
    )
    words += f"  all {found['wall']['total'][0]:6.2f}"
    for name, ratio in found["wall"].get("module", {}).items():
        words += f"  | module against {name} {ratio[0]:.2f}"
    return words


def markdown(results: dict[str, Any]) -> str:
    """All three products together, and the modules."""
    from equipoise.speed.machine import in_words
    from equipoise.speed.results import table, times_in_words

    layers = results["layers"]
    densities = sorted({round(e["density"], 3) for e in layers}, reverse=True)
    names = list(dict.fromkeys(e["layer"] for e in layers))
    known = {(e["layer"], round(e["density"], 3)): e for e in layers}
    head = ["Layer", *(f"{100 * (1 - d):.3g} %" for d in densities)]

    def grid(cell: Callable[[dict[str, Any]], str]) -> str:
        rows = [
            [n, *(cell(known[n, d]) if (n, d) in known else "" for d in densities)] for n in names
        ]
        return table(head, rows)

    def against(peer: str) -> str:
        def cell(found: dict[str, Any]) -> str:
            times = found["wall"].get("module", {}).get(peer)
            return times_in_words(times) if times else "-"

        return grid(cell)

    parts = [
        f"{in_words(results['machine'])}, {results['threads']} thread(s), batch "
        f"{results['batch_size']}; columns are sparsities.",
        "Output, input gradient and weight gradient together against torch's dense ones in the "
        "better format of each, in the kernels' layout, wall time:",
        grid(lambda found: times_in_words(found["wall"]["total"])),
    ]
    if any("module" in e["wall"] for e in layers):
        known_peers = {peer for e in layers for peer in e["wall"].get("module", {})}
        for peer in sorted(known_peers):
            parts += [f"The layer as a module against {peer}:", against(peer)]
    return "\n\n".join(parts) + "\n"


if __name__ == "__main__":
    main()
