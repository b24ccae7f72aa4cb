"""Writes docs/compatibility.md: program x format x what was actually loaded, and how exactly.

    python benchmarks/compatibility.py --checkouts FOLDER --output docs/compatibility.md

diffusers and PEFT are those installed. Of the other programs, FOLDER may hold checkouts of their
repositories under the repositories' names, each with its commit in a file COMMIT (for LyCORIS: an
installed package, its version there); each trial runs the program's own loader or layer on tiny
models with random weights and compares the UNet's output with ours. A program without a checkout
keeps the lines that the page has of its last run.
"""

from __future__ import annotations

import argparse
import logging
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests"), str(ROOT / "tests" / "formats")]

import compatibility_peers as programs  # noqa: E402
import peers  # noqa: E402
import tiny_models  # noqa: E402
import torch  # noqa: E402
from diffusers import (  # noqa: E402
    DiffusionPipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from peft import LoraConfig, PeftModel, get_peft_model  # noqa: E402
from safetensors.torch import load_file, save_file  # noqa: E402

from diffusekrona import KronAConfig, load_adapter, save_adapter  # noqa: E402
from diffusekrona.formats.conversion import convert  # noqa: E402

FAMILIES = ("sd1", "sd2", "sdxl")
SQUARE, WIDE = KronAConfig(a1=8, a2=8, scale=0.5), KronAConfig(a1=4, a2=8, scale=0.5)
TERMS = KronAConfig(a1=4, a2=8, terms=2, output_order="interleaved")
CLOSE = 1e-5
REPOSITORIES = {
    "ComfyUI": ("ComfyUI", "comfy/lora.py, comfy/weight_adapter, its own UNet"),
    "Forge": ("stable-diffusion-webui-forge", "backend/patcher/lora.py"),
    "InvokeAI": ("InvokeAI", "backend/patches: name conversion and layers"),
    "LyCORIS": ("LyCORIS", "lycoris.wrapper, lycoris.modules"),
    "kohya sd-scripts": ("sd-scripts", "networks/lora.py"),
    "OneTrainer": ("OneTrainer", "modules/module/LoRAModule.py"),
    "ai-toolkit": ("ai-toolkit", "toolkit/models/lokr.py"),
    "published DiffuseKronA code": ("DiffuseKronA", "diffusekrona/krona.py"),
}


@dataclass
class Row:
    """One line of the table."""

    program: str
    what: str
    family: str
    result: str


@dataclass
class Bench:
    """The tiny bases, a folder to work in, and the rows so far."""

    folder: Path
    checkouts: Path | None
    rows: list[Row]

    def base(self, family: str) -> Path:
        path = self.folder / family
        return path if path.is_dir() else peers.save_base(path, family)

    def unet(self, family: str) -> UNet2DConditionModel:
        return UNet2DConditionModel.from_pretrained(self.base(family) / "unet").eval()

    def ours(self, family: str, config: KronAConfig) -> tuple[Path, torch.Tensor]:
        """An adapter file and the UNet output that it makes."""
        unet = self.unet(family)
        unet.add_adapter(config)
        tiny_models.random_factors(unet)
        want = output(unet, family)
        assert (want - output(self.unet(family), family)).abs().max() > 1e-2  # it does something
        return save_adapter(unet, self.folder / "a.safetensors"), want

    def write(self, source: Path, name: str, target: str, **options) -> Path:
        convert(source, self.folder / name, target, overwrite=True, **options)
        return self.folder / name

    def checkout(self, program: str) -> Path:
        folder = self.checkouts and self.checkouts / REPOSITORIES[program][0]
        if not folder or not folder.is_dir():
            raise FileNotFoundError(program)
        return folder

    def trial(self, program: str, what: str, family: str, run: Callable[[], float]) -> None:
        try:
            gap = run()
            result = f"yes, {gap:.1e}" if gap < CLOSE else f"NO, differs by {gap:.1e}"
        except FileNotFoundError:
            result = "not tried"
        except Exception as error:
            line = (str(error).strip() or type(error).__name__).splitlines()[0]
            line = line.replace(f"{self.folder}/", "")
            result = f"refused: {line if len(line) <= 90 else line[:89].rstrip() + '…'}"
        self.rows.append(Row(program, what, family, result))
        print(f"{program:30} {what:52} {family:5} {result}", flush=True)


def output(unet: torch.nn.Module, family: str) -> torch.Tensor:
    with torch.no_grad():
        return unet(**peers.base_inputs(family)).sample


def out_to_diffusers(bench: Bench, family: str) -> None:
    """Every format that stock diffusers and PEFT load."""
    for config, name in ((WIDE, "one product"), (TERMS, "two terms, published row order")):
        source, want = bench.ours(family, config)

        def gap(unet, want=want) -> float:
            return (output(unet, family) - want).abs().max().item()

        for target in ("lora", "lora-kohya"):

            def load(target=target, source=source, gap=gap) -> float:
                pipe = DiffusionPipeline.from_pretrained(bench.base(family))
                pipe.load_lora_weights(bench.write(source, "l.safetensors", target))
                return gap(pipe.unet)

            what = f"pipe.load_lora_weights, --to {target}, {name}"
            bench.trial("diffusers", what, family, load)

        def folder(source=source, gap=gap) -> float:
            path = bench.write(source, "model", "merged", base=bench.base(family))
            return gap(DiffusionPipeline.from_pretrained(path).unet)

        def single(source=source, gap=gap) -> float:
            path = bench.write(source, "m.safetensors", "merged", base=bench.base(family))
            kind = StableDiffusionXLPipeline if family == "sdxl" else StableDiffusionPipeline
            return gap(kind.from_single_file(str(path), config=str(bench.base(family))).unet)

        def peft(target: str, source=source, gap=gap) -> float:
            path = bench.write(source, f"folder-{target}", target)
            return gap(PeftModel.from_pretrained(bench.unet(family), path))

        bench.trial("diffusers", f"from_pretrained, --to merged, {name}", family, folder)
        bench.trial("diffusers", f"from_single_file, --to merged, {name}", family, single)
        bench.trial(
            "PEFT",
            f"from_pretrained, --to peft-lora, {name}",
            family,
            lambda p=peft: p("peft-lora"),
        )
        bench.trial(
            "PEFT + our package",
            f"from_pretrained, --to peft, {name}",
            family,
            lambda p=peft: p("peft"),
        )
    for config, name in ((SQUARE, "square A"), (WIDE, "rectangular A")):
        source, want = bench.ours(family, config)

        def lokr(source=source, want=want) -> float:
            unet = bench.unet(family)
            path = bench.write(source, "l.safetensors", "lokr-diffusers")
            unet.load_lora_adapter(load_file(path), prefix=None)
            return (output(unet, family) - want).abs().max().item()

        bench.trial(
            "diffusers", f"unet.load_lora_adapter, --to lokr-diffusers, {name}", family, lokr
        )


def out_to_others(bench: Bench, family: str) -> None:
    """LoKr, LoRA and merged files, in the other programs' own code."""
    sgm = family == "sdxl"
    for config, name in ((SQUARE, "square A"), (WIDE, "rectangular A")):
        source, want = bench.ours(family, config)
        plain = bench.write(
            source, "plain.safetensors", "merged", base=bench.base(family), weight=0.0
        )

        def gap(unet, want=want) -> float:
            return (output(unet, family) - want).abs().max().item()

        for target in ("lokr", "lora-kohya", "lora"):
            path = bench.write(source, f"{target}.safetensors", target)
            what = f"--to {target}, {name}"

            def comfy(path=path, plain=plain, want=want) -> float:
                given, unet = peers.base_inputs(family), bench.unet(family)
                made = programs.comfyui(bench.checkout("ComfyUI"), plain, path, unet, given)
                return (made - want).abs().max().item()

            def forge(path=path, gap=gap) -> float:
                unet = bench.unet(family)
                programs.forge(bench.checkout("Forge"), path, peers.ui_stems(unet, sgm))
                return gap(unet)

            def invoke(path=path, gap=gap) -> float:
                unet = bench.unet(family)
                stems = peers.ui_stems(unet, False)
                programs.invokeai(bench.checkout("InvokeAI"), path, stems, sgm)
                return gap(unet)

            bench.trial("ComfyUI", what, family, comfy)
            if target != "lora":
                bench.trial("Forge", what, family, forge)
                bench.trial("InvokeAI", what, family, invoke)

        def lycoris(source=source, gap=gap) -> float:
            unet = bench.unet(family)
            path = bench.write(source, "y.safetensors", "lokr-lycoris")
            programs.lycoris(bench.checkout("LyCORIS"), path, unet)
            return gap(unet)

        bench.trial("LyCORIS", f"--to lokr-lycoris, {name}", family, lycoris)

        def kohya(source=source, gap=gap) -> float:
            unet = bench.unet(family)
            path = bench.write(source, "k.safetensors", "lora-kohya")
            programs.kohya(bench.checkout("kohya sd-scripts"), path, unet)
            return gap(unet)

        if not sgm:  # of SDXL it takes only its own UNet, whose size is fixed
            bench.trial("kohya sd-scripts", f"--to lora-kohya, {name}", family, kohya)

        def single(source=source, want=want) -> float:
            path = bench.write(source, "m.safetensors", "merged", base=bench.base(family))
            given, unet = peers.base_inputs(family), bench.unet(family)
            made = programs.comfyui(bench.checkout("ComfyUI"), path, None, unet, given)
            return (made - want).abs().max().item()

        bench.trial("ComfyUI", f"--to merged, one file, {name}", family, single)


def files_in(bench: Bench) -> None:
    """Files that other programs' own code made, read here."""
    lokr = programs.lycoris_file
    makers = {
        ("LyCORIS", "LoKr"): lambda p, u: lokr(p, u),
        ("LyCORIS", "LoKr, decompose_both, factor 8"): lambda p, u: lokr(
            p, u, decompose_both=True, factor=8
        ),
        ("LyCORIS", "LoKr, full_matrix"): lambda p, u: lokr(p, u, full_matrix=True),
        ("LyCORIS", "LoKr, unbalanced_factorization"): lambda p, u: lokr(
            p, u, unbalanced_factorization=True
        ),
        ("ai-toolkit", "LoKr"): programs.ai_toolkit_file,
        ("OneTrainer", "LoKr"): programs.onetrainer_file,
        ("published DiffuseKronA code", "checkpoint, k q v o"): programs.published_file,
    }
    for (program, what), make in makers.items():

        def read(make=make, program=program) -> float:
            unet = peers.plain_unet()
            save_file(make(bench.checkout(program), unet), bench.folder / "x.safetensors")
            path = bench.write(
                bench.folder / "x.safetensors", "y.safetensors", "krona", family="sd1"
            )
            back = peers.plain_unet()
            load_adapter(back, path)
            return (peers.output(back) - peers.output(unet)).abs().max().item()

        bench.trial(program, f"{what}, read by --to krona", "sd1", read)

    for algorithm, options in LYCORIS_ALGORITHMS.items():

        def whole(algorithm=algorithm, options=options) -> float:
            unet = bench.unet("sd1")
            file = bench.folder / "x.safetensors"
            tensors = programs.lycoris_network(bench.checkout("LyCORIS"), unet, **options)
            save_file(tensors, file)
            path = bench.write(file, "m", "merged", base=bench.base("sd1"))
            made = UNet2DConditionModel.from_pretrained(path / "unet").eval()
            return (output(made, "sd1") - output(unet, "sd1")).abs().max().item()

        bench.trial("LyCORIS", f"{algorithm}, read by --to merged", "sd1", whole)

    def peft_folder() -> float:
        model = get_peft_model(
            peers.plain_unet(), LoraConfig(r=3, lora_alpha=5, target_modules=["to_q", "to_k"])
        )
        tiny_models.random_factors(model)
        model.save_pretrained(bench.folder / "peft")
        path = bench.write(bench.folder / "peft", "y.safetensors", "lora", family="sd1")
        back = peers.plain_unet()
        back.load_lora_adapter(load_file(path), prefix="unet")
        return (peers.output(back) - peers.output(model)).abs().max().item()

    bench.trial("PEFT", "LoRA folder, read by --to lora", "sd1", peft_folder)


LYCORIS_ALGORITHMS = {
    "LoCon": {"algo": "lora"},
    "LoCon with a core (use_tucker)": {"algo": "lora", "use_tucker": True},
    "LoHa": {"algo": "loha"},
    "LoKr, every layer": {"algo": "lokr", "factor": 4},
    "LoKr with a core (use_tucker)": {"algo": "lokr", "factor": 4, "use_tucker": True},
    "GLoRA": {"algo": "glora"},
    "full": {"algo": "full"},
    "LoCon and norms (train_norm)": {"algo": "lora", "train_norm": True},
    "LoCon, weight-decomposed (dora_wd)": {"algo": "lora", "dora_wd": True},
    "LoCon, weight-decomposed per column": {"algo": "lora", "dora_wd": True, "wd_on_output": False},
    "LoKr, weight-decomposed (dora_wd)": {"algo": "lokr", "factor": 4, "dora_wd": True},
    "LoHa, weight-decomposed (dora_wd)": {"algo": "loha", "dora_wd": True},
    "LoCon, use_scalar": {"algo": "lora", "use_scalar": True},
    "LoHa with cores, use_scalar": {"algo": "loha", "use_tucker": True, "use_scalar": True},
    "LoKr of products, use_scalar": {
        "algo": "lokr",
        "factor": 8,
        "decompose_both": True,
        "use_scalar": True,
    },
    "LoKr, rs_lora": {"algo": "lokr", "factor": 4, "rs_lora": True},
    "GLoRA, use_scalar": {"algo": "glora", "use_scalar": True},
    "DyLoRA": {"algo": "dylora", "block_size": 1},
    "diag-OFT": {"algo": "diag-oft"},
    "BOFT": {"algo": "boft"},
    "(IA)^3": {"algo": "ia3"},
    "T-LoRA": {"algo": "tlora"},
}
CHOICES = (
    ("diffusers, `pipe.load_lora_weights`", "--to lora"),
    ("PEFT, `PeftModel.from_pretrained`", "--to peft-lora"),
    ("ComfyUI, Forge, InvokeAI, AUTOMATIC1111: smallest file", "--to lokr"),
    (
        "ComfyUI, Forge, InvokeAI, AUTOMATIC1111: adapters with several terms or the published row "
        "order",
        "--to lora-kohya",
    ),
    ("kohya sd-scripts", "--to lora-kohya"),
    (
        "LyCORIS' own wrapper, SimpleTuner: square A, n x n with n at most the root of both sizes",
        "--to lokr-lycoris",
    ),
    ("any program that loads whole models", "--to merged --base BASE"),
    (
        "ai-toolkit: FLUX.2-klein and Z-Image, see [their page](transformers.md)",
        "--to lora-ai-toolkit",
    ),
)
UNTRIED = (
    (
        "ComfyUI, Forge, InvokeAI, AUTOMATIC1111",
        "in their own user interfaces, with published models",
    ),
    ("SimpleTuner", "its trainer and loader; its files are LyCORIS' own, which were tried"),
    ("kohya sd-scripts", "SDXL, whose UNet there has one fixed size; see below"),
)
REMARKS = """
## What to know

- **LyCORIS 4.1.3** makes the first factor of a LoKr again from the layer's size and one number that
  it guesses, so it loads few shapes. A square A of n x n loads where n is at most the square root
  of both sizes of the layer: (8, 8) and (16, 16) everywhere in SD and SDXL; (32, 32) not where a
  size is 320, 640 or 768; (64, 64) in no attention layer. Of other pairs it loads those that its
  own factorisation makes, such as (20, 16) at 1280 x 2048. `--to lokr-lycoris` says in a note
  which layers it would refuse; the rule was compared with the library over 10 layer sizes and
  every pair of factors up to 64 that divides them, without a difference.
  Its own `merge_to` applies alpha / rank twice to LoKr and LoHa; files are read here as its layers
  compute while they train, and the lines above compare with that. A DyLoRA is the exception: its
  layers run random parts of the ranks, at a scale that the file does not hold, so it is refused;
  `--from lora` reads it as ComfyUI does, all ranks at alpha / rank.
- **SimpleTuner** trains LyCORIS networks and wants LyCORIS' own names (`lycoris_...`), which
  `--to lokr-lycoris` writes. A file holds a UNet's layers only.
- **kohya sd-scripts** reads `--to lora-kohya` with `networks/lora.py` (its UNet's part was run).
  Its pull request 2370 (open in June 2026) adds `networks/krona.py` and
  `networks/cdka.py`, which write LoKr keys: `lokr_w1` (out/r1, r2), `lokr_w2` (r1, in/r2), `alpha`.
  Both factors are whole and the scale is stored in `lokr_w1`, so any LoKr reader takes them, this
  one too. One version of its KronA left the scale out when `use_cdka_scale` was set; here
  `krona_alpha / sqrt(r2)` is then taken from the file's `ss_network_args`. One version of its
  CDKA left it out too, which no file shows: give such a file as SOURCE:WEIGHT. This was read
  from the pull request's code (commits 0c641ecd and cd29e41a) and tested against its formula; its
  trainer was not run. Its weight-decomposed files (`dora_scale`) need `--base`.
- **AUTOMATIC1111** reads `--to lora-kohya` and `--to lokr` exactly (its Lora extension was run on
  files of an earlier version of this package). It applies the attention of SDXL's second text
  encoder only if a file has q, k, v and out of a layer.
- **DoRA and GLoRA** depend on the base's weights: with `--base` they are exact as `--to merged`,
  and as LoRA of the rank that they need.
- **PEFT adapters whose start changed the base** (PiSSA, OLoRA, CorDA, LoftQ, LoRA-GA) are refused:
  PEFT's `save_pretrained(..., path_initial_model_for_weight_conversion=...)` makes a plain LoRA of
  one, which is read.
"""


def kept_lines(page: str, program: str) -> list[str]:
    """The lines that a page written earlier has of a program."""
    return [line for line in page.splitlines() if line.startswith(f"| {program} |")]


def page(rows: list[Row], checkouts: Path | None, before: str) -> str:
    lines = [
        "# Compatibility with other programs",
        "",
        "Written by `benchmarks/compatibility.py`; do not edit. Every row was tested: the other "
        "program's own loader or layer ran on tiny models with random weights. The difference is "
        "the largest absolute difference between its UNet's output and this package's in fp32 "
        "(outputs are around 1). Programs other than diffusers, PEFT and LyCORIS were not "
        "installed: the code listed below ran from a checkout, with modules that do not take part "
        "in loading "
        "(web server, logging, quantisation) replaced by empty ones, and ComfyUI's UNet was "
        "configured with the tiny models' numbers of heads and groups. `refused` is followed by "
        "the reason; `not tried` means that the program was not tested.",
        "",
        f"diffusers {version('diffusers')}, PEFT {version('peft')}, "
        f"transformers {version('transformers')}, torch {version('torch').split('+')[0]}.",
        "",
        "| to use an adapter in | convert with |",
        "|---|---|",
        *(f"| {program} | `{flag}` |" for program, flag in CHOICES),
        "",
        "| program | code that ran | commit |",
        "|---|---|---|",
    ]
    for name, (folder, code) in REPOSITORIES.items():
        mark = (checkouts / folder / "COMMIT") if checkouts else Path("-")
        kept = kept_lines(before, name)[:1]
        if mark.is_file() or not kept:
            commit = mark.read_text().strip() if mark.is_file() else "not tried"
            kept = [f"| {name} | {code} | {commit} |"]
        lines += kept
    untried = {r.program for r in rows} - {r.program for r in rows if r.result != "not tried"}
    rows = [row for row in rows if row.program not in untried]
    for title, kind in (
        ("This package's files in other programs", False),
        ("Files of other programs in this package", True),
    ):
        lines += ["", f"## {title}", "", "| program | what | models | loaded, difference |"]
        lines.append("|---|---|---|---|")
        merged: dict[tuple[str, str, str], list[str]] = {}
        for row in rows:
            if ("read by" in row.what) == kind:
                key = (row.program, row.what, row.result if "yes" not in row.result else "yes")
                merged.setdefault(key, []).append(f"{row.family} {row.result}")
        for (program, what, result), found in merged.items():
            models = ", ".join(f.split()[0] for f in found)
            if result == "yes":
                result = "yes, " + max((f.split()[-1] for f in found), key=float)
            lines.append(f"| {program} | {what.replace('|', '/')} | {models} | {result} |")
        for program in REPOSITORIES:
            if program in untried:
                old = kept_lines(before, program)[1:]
                lines += [line for line in old if ("read by" in line) == kind]
    lines += ["", "## Not tried", ""]
    lines += [f"- {program}: {what}" for program, what in UNTRIED]
    return "\n".join(lines) + "\n" + REMARKS


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--checkouts", type=Path, help="Folder of repositories' checkouts.")
    parser.add_argument("--output", type=Path, default=ROOT / "docs" / "compatibility.md")
    args = parser.parse_args()
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(folder), args.checkouts and args.checkouts.resolve(), [])
        for family in FAMILIES:
            out_to_diffusers(bench, family)
            out_to_others(bench, family)
        files_in(bench)
    before = args.output.read_text(encoding="utf-8") if args.output.is_file() else ""
    args.output.write_text(page(bench.rows, bench.checkouts, before), encoding="utf-8")


if __name__ == "__main__":
    main()
