"""The studies that come with the package: the paper's five, two against LoRA, initialisation.

Two scales: bundled bases are small and want higher learning rates and fewer steps than the
published models, whose values here are the paper's, and a schedule that ends at 0, since so few
steps end noisy at a constant rate.
"""

from __future__ import annotations

from dataclasses import dataclass

from .grid import Arm, Axis, Flags, Study, Value, axis, factor_values, label_of


@dataclass(frozen=True)
class Scale:
    """What depends on the size of the base.

    Attributes:
        rate: KronA's usual one; rates, lora_rates, lokr_rates: each method's, around its own best.
            LoKr's first factor starts about ten times larger than KronA's: a rate means as much
            more.
        equal_rank: LoRA's rank with about as many parameters as (4, 64).
        sizes: KronA's pairs and LoRA's ranks over which stability is measured, in about the same
            range of parameters.
    """

    rate: float
    rates: tuple[float, ...]
    lora_rates: tuple[float, ...]
    lokr_rates: tuple[float, ...]
    steps: int
    checkpoints: tuple[int, ...]
    equal_rank: int
    sizes: tuple[tuple[tuple[int, int], ...], tuple[int, ...]]
    schedule: str = "constant"
    batch: int = 1


BUNDLED = Scale(
    rate=2e-3,
    rates=(6e-4, 2e-3, 6e-3, 2e-2, 6e-2),
    lora_rates=(2e-4, 6e-4, 2e-3, 6e-3, 2e-2),
    lokr_rates=(6e-5, 2e-4, 6e-4, 2e-3, 6e-3),
    steps=300,
    checkpoints=(50, 100, 200, 300, 600),
    equal_rank=1,
    sizes=(((2, 16), (4, 16), (4, 64)), (3, 2, 1)),
    schedule="cosine",
    batch=4,
)
PUBLISHED = Scale(
    rate=5e-4,
    rates=(5e-5, 1e-4, 5e-4, 1e-3, 5e-3),
    lora_rates=(1e-5, 2e-5, 1e-4, 2e-4, 1e-3),
    lokr_rates=(1e-5, 2e-5, 1e-4, 2e-4, 1e-3),
    steps=1000,
    checkpoints=(100, 250, 500, 1000, 1500),
    equal_rank=3,
    sizes=(((2, 64), (4, 64), (8, 64)), (5, 3, 2)),
)
PAIRS = ((2, 64), (4, 64), (8, 64), (16, 64), (64, 64), (4, 16), (8, 8), (4, 4))
KRONA = {"adapter_type": "krona"}


def studies(bundled_base: bool) -> dict[str, Study]:
    """Every built-in study by name, at the scale of the base."""
    scale = BUNDLED if bundled_base else PUBLISHED
    made = (
        _iterations(scale),
        _factors(scale),
        _learning_rate(scale),
        _few_shot(scale),
        _modules(scale),
        _stability(scale),
        _comparison(scale),
        _initialisation(scale),
    )
    return {study.name: study for study in made}


def _flags(scale: Scale) -> Flags:
    """Of a run that ends at the scale's steps."""
    return {**_length(scale), "learning_rate": scale.rate, "a1": 4, "a2": 64}


def _length(scale: Scale) -> Flags:
    """How long a run is, and how much it sees at a step."""
    return {"max_train_steps": scale.steps, "lr_scheduler": scale.schedule, **_batch(scale)}


def _batch(scale: Scale) -> Flags:
    return {"train_batch_size": scale.batch} if scale.batch > 1 else {}


def _one_arm(*axes: Axis) -> tuple[Arm, ...]:
    return (Arm("KronA", dict(KRONA), axes),)


def _iterations(scale: Scale) -> Study:
    return Study(
        name="iterations",
        title="Training iterations",
        question="After how many steps is the subject there, and when do prompts give way to it?",
        paper="500 steps for easy subjects, 1000 for complex subjects or prompts (SDXL).",
        # At a constant rate: with a schedule, an earlier step is not what a shorter run ends with.
        flags={
            "max_train_steps": max(scale.checkpoints),
            "learning_rate": scale.rate,
            "a1": 4,
            "a2": 64,
            **_batch(scale),
        },
        checkpoints=scale.checkpoints,
        arms=_one_arm(),
    )


def _factors(scale: Scale) -> Study:
    return Study(
        name="factors",
        title="Size of the Kronecker factors",
        question="Which (a1, a2) keep the subject and the prompt, and at how many parameters?",
        paper="(4, 64) is best, a2 = 64 with a1 of 2, 4, 8 good; with both at most 8 prompts are "
        "no longer followed, and parameters grow drastically.",
        flags=_flags(scale),
        reference="(4, 64)",
        arms=_one_arm(Axis("factors", factor_values(PAIRS))),
    )


def _learning_rate(scale: Scale) -> Study:
    return Study(
        name="learning-rate",
        title="Learning rate",
        question="Where does the subject appear, and where do prompts give way to it?",
        paper="5e-4 to 6e-4 is best, 1e-4 to 1e-3 gives like pictures; above it overfits, below it "
        "the subject is lost (SDXL).",
        flags=_flags(scale),
        reference=label_of(scale.rate),
        arms=_one_arm(axis("learning rate", "learning_rate", scale.rates)),
    )


def _few_shot(scale: Scale) -> Study:
    return Study(
        name="few-shot",
        title="Number of pictures",
        question="How many pictures of the subject are enough?",
        paper="One works, but poses and angles stay few; 3 to 4 are good.",
        flags=_flags(scale),
        reference="4",
        arms=_one_arm(axis("pictures", "pictures", (1, 2, 3, 4))),
    )


def _modules(scale: Scale) -> Study:
    sets = [Value(f"{letter} alone", {"attn_update_unet": letter.lower()}) for letter in "QKVO"]
    sets += [
        Value("Q, K, V, O", {"attn_update_unet": "kqvo"}),
        Value("with feed-forward", {"attn_update_unet": "kqvo", "train_feed_forward": True}),
        Value("with text encoder", {"attn_update_unet": "kqvo", "train_text_encoder": True}),
    ]
    return Study(
        name="modules",
        title="Choice of modules",
        question="Which layers need an adapter?",
        paper="Attention only is best; feed-forward layers double the parameters and do not help.",
        flags=_flags(scale),
        reference="Q, K, V, O",
        arms=_one_arm(Axis("modules", tuple(sets))),
    )


def _stability(scale: Scale) -> Study:
    pairs, ranks = scale.sizes
    sizes = (
        Axis("size", factor_values(pairs)),
        Axis("size", tuple(Value(f"r = {r}", {"rank": r}) for r in ranks)),
    )
    rates = [
        axis("learning rate", "learning_rate", own[1:-1]) for own in (scale.rates, scale.lora_rates)
    ]
    return Study(
        name="stability",
        title="Stability against LoRA",
        question="How far apart are the pictures when learning rate and size are varied, each "
        "method around its own best rate?",
        paper="Pictures vary less over learning rates and factors than LoRA's over learning rates "
        "and ranks.",
        flags=_length(scale),
        spread=True,
        arms=(
            Arm("KronA", dict(KRONA), (rates[0], sizes[0])),
            Arm("LoRA", {"adapter_type": "lora"}, (rates[1], sizes[1])),
        ),
    )


def _comparison(scale: Scale) -> Study:
    krona, lora, lokr = (
        axis("learning rate", "learning_rate", own)
        for own in (scale.rates, scale.lora_rates, scale.lokr_rates)
    )
    arms = [Arm("KronA", {**KRONA, "a1": 4, "a2": 64}, (krona,))]
    for rank in (scale.equal_rank, 4):
        arms.append(Arm(f"LoRA r={rank}", {"adapter_type": "lora", "rank": rank}, (lora,)))
    # Of this rank LoKr keeps both its nearly square factors whole: as many parameters as (4, 64).
    arms.append(Arm("LoKr", {"adapter_type": "lokr", "rank": 64}, (lokr,)))
    return Study(
        name="comparison",
        title="KronA, LoRA and LoKr",
        question="With the same parameters and at the usual sizes, each over rates around its own "
        "best: which keeps the subject and the prompt better, and which is easier to tune?",
        paper="KronA (4, 64) is ahead of LoRA r=4 in CLIP-I, CLIP-T and DINO, with two thirds of "
        "its parameters (SDXL).",
        flags=_length(scale),
        reference=label_of(scale.rate),
        arms=tuple(arms),
    )


def _initialisation(scale: Scale) -> Study:
    starts = (
        Value("A normal, B = 0", {"init_weights": "paper"}),
        Value("A Kaiming, B = 0", {"init_weights": "kaiming_uniform"}),
        Value("both normal", {"init_weights": "both"}),
    )
    return Study(
        name="initialisation",
        title="Initialisation",
        question="Does it matter how the factors start?",
        paper="A normal or Kaiming with B = 0 is best, both non-zero worst.",
        flags=_flags(scale),
        arms=_one_arm(Axis("start", starts)),
    )
