"""Settings classes: their way from flags and YAML and back, and their limits."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pytest

from diffusekrona.common.command_line import parse
from diffusekrona.common.errors import UserError
from diffusekrona.common.settings import (
    build,
    check_limits,
    options_of,
    setting,
    with_values,
)
from diffusekrona.common.settings_files import (
    read_settings_file,
    to_yaml,
    typed_values,
    write_settings_file,
)


@dataclass(frozen=True)
class Taste:
    """How it tastes."""

    sweetness: float = setting(0.5, minimum=0, maximum=1, help="Set the sweetness.")
    salt: int | None = setting(None, above=0, multiple_of=2, help="Add grains.")
    spice: Literal["no", "mild", "hot"] = setting("no", ignore_case=True, help="Add spice.")


@dataclass(frozen=True)
class Cake:
    """A cake."""

    pan: Path = setting(metavar="PAN", help="Bake in this.")
    taste: Taste
    layers: tuple[int, ...] = setting((1, 2), minimum=1, help="Heights of the layers.")
    topping: tuple[str, ...] = setting((), append=True, help="Put this on top; repeat.")
    oven: str | None = setting(None, flag="from", help="Take it out of this oven.")
    gluten: bool = setting(False, help="Use flour.")
    no_icing: bool = setting(False, help="Leave the icing out.")
    token: str | None = setting(None, in_file=False, help="A secret.")
    on_the_side: tuple[str, ...] = setting((), append=True, help="Serve this with it; repeat.")


def cake(*argv: str) -> Cake:
    return parse(Cake, argv, prog="cake", description="Bake.")


def test_flags_make_settings() -> None:
    made = cake(
        "--pan", "tin", "--sweetness", "1e-1", "--spice", "HOT", "--layers", "3", "1", "--gluten",
        "--topping", "nuts", "--topping=-cream", "--from", "old", "--no_icing",
    )  # fmt: skip
    assert made == Cake(
        Path("tin"), Taste(0.1, None, "hot"), (3, 1), ("nuts", "-cream"), "old", True, True
    )
    assert cake("--pan", "tin") == Cake(Path("tin"), Taste())
    assert not cake("--pan", "tin", "--gluten", "--no-gluten").gluten


@pytest.mark.skipif(os.name != "posix", reason="home folders by name")
def test_a_home_that_the_shell_left_alone(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cake("--pan=~/tin").pan == tmp_path / "tin"
    assert typed_values(Cake, {"pan": "~/tin"}, "a.yaml") == {"pan": tmp_path / "tin"}
    assert cake("--pan=~nobody-of-this-name/tin").pan == Path("~nobody-of-this-name/tin")
    (tmp_path / "cake.yaml").write_text("pan: ~/tin\n")
    assert cake("--config=~/cake.yaml").pan == tmp_path / "tin"


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        ("", "Required: --pan."),
        ("--pan a --sweetnes 1", r"--sweetnes is not a flag of cake \(did you mean --sweetness\?"),
        ("--pan a b", "'b' belongs to no flag: put text with spaces into quotes\\."),
        ("--pan a --topping b c", "'c' .* quotes, and repeat --topping for each further value"),
        ("--pan a --on-the-side b c", "'c' .* repeat --on_the_side for each further value"),
        ("--pan", "--pan needs a value"),
        ("--pan a --salt x", "--salt must be a whole number, not 'x'"),
        ("--pan a --salt 0", "--salt must be a positive number, not 0"),
        ("--pan a --salt 3", "--salt must be a multiple of 2, not 3"),
        ("--pan a --salt 36893488147419103232", "--salt must be a smaller number"),
        ("--pan a --sweetness nan", "--sweetness must be a finite number, not nan"),
        ("--pan a --sweetness 5", "--sweetness must be at most 1, not 5"),
        ("--pan a --sweetness -1", "--sweetness must be at least 0, not -1"),
        ("--pan a --layers 1 0", "--layers must be at least 1, not 0"),
        ("--pan a --layers", "--layers needs a value"),
        ("--pan a --spice warm", "--spice must be one of no, mild, hot, not warm"),
        ("--pan a --config missing.yaml", "Cannot read missing.yaml: no such file"),
    ],
)
def test_mistakes_are_one_line(argv: str, says: str) -> None:
    with pytest.raises(UserError, match=says) as error:
        cake(*argv.split())
    assert "\n" not in str(error.value)


def test_a_file_is_the_same_as_its_flags(tmp_path: Path) -> None:
    flags = ("--pan", "tin", "--salt", "4", "--topping", "nuts", "--topping", "jam", "--gluten")
    made, path = cake(*flags, "--token", "secret"), tmp_path / "cake.yaml"
    write_settings_file(made, path)
    assert "secret" not in path.read_text()
    assert cake("--config", str(path)) == with_values(made, token=None)
    # Flags beside it win, wherever they stand; repeated ones replace the file's.
    beside = cake("--salt", "6", f"--config={path}", "--topping", "ice", "--no_gluten")
    assert beside == with_values(made, token=None, salt=6, topping=("ice",), gluten=False)


@pytest.mark.parametrize("flags", [("--on-the-side", "ice"), ("--on-the-side=ice",)])
def test_a_flag_with_hyphens_replaces_the_files_values(tmp_path: Path, flags) -> None:
    path = tmp_path / "cake.yaml"
    path.write_text("pan: tin\non_the_side: [nuts, jam]\n")
    assert cake(*flags, "--config", str(path)).on_the_side == ("ice",)


def test_values_as_people_write_them(tmp_path: Path) -> None:
    path = tmp_path / "cake.yaml"
    path.write_text("pan: tin\nsweetness: 5e-1\nspice: no\nsalt: null\nlayers: [2]\n")
    assert read_settings_file(Cake, path) == {
        "pan": Path("tin"), "sweetness": 0.5, "spice": "no", "layers": (2,)
    }  # fmt: skip


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("sweetnes: 1", r"'sweetnes' is not a setting \(did you mean sweetness\?"),
        ("taste: {sweetness: 1}", "'taste' is not a setting"),
        ("salt: many", "salt must be a whole number, not 'many'"),
        ("salt: 1.5", "salt must be a whole number, not 1.5"),
        ("salt: true", "salt must be a whole number, not True"),
        ("sweetness: [1]", r"sweetness must be a number, not \[1\]"),
        ("sweetness: " + "9" * 400, "sweetness must be a number"),
        ("gluten: 1", "gluten must be true or false, not 1"),
        ("layers: 1", "layers must be a list of whole numbers, not 1"),
        ("from: 5", "from must be text, not 5"),
        ("5: 5", "5 is not a setting"),
        ("- a", "does not hold settings"),
        ("salt: 2\nsalt: 4", "'salt' is there twice"),
        ("a: &a [1]\nb: *a", "aliases"),
        ("a: " + "[" * 60 + "]" * 60, "50 deep"),
        ("a: !!python/object:os.system x", "Cannot read"),
        ("a: [", "Cannot read"),
        ("# " + "x" * 2**20, "larger than 1 MiB"),
        ("\n".join(f"a{n}: 1" for n in range(30_000)), "more than 20000 values"),
        ("salt: 1" + ":59" * 10_000, "a number of 30001 characters"),
        ("sweetness: 1" + ":59" * 5_000 + ".5", "a number of 15003 characters"),
        ("!!bool x: 1", "Cannot read"),
    ],
)
def test_mistakes_in_a_file_are_one_line(text: str, says: str, tmp_path: Path) -> None:
    path = tmp_path / "cake.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=says) as error:
        read_settings_file(Cake, path)
    assert "\n" not in str(error.value) and "cake.yaml" in str(error.value)
    assert len(str(error.value)) < 400


def test_limits_hold_for_settings_from_anywhere() -> None:
    for bad in (math.nan, math.inf, 1e39):
        with pytest.raises(UserError, match="--sweetness"):
            check_limits(Cake(Path("tin"), Taste(sweetness=bad)))
    with pytest.raises(UserError, match="--spice"):
        check_limits(build(Cake, typed_values(Cake, {"pan": "a", "spice": "warm"}, "here")))
    with pytest.raises(UserError, match=r"--salt must be a smaller number, not .{,80}$"):
        check_limits(Cake(Path("tin"), Taste(salt=16**1000)))
    with pytest.raises(UserError, match="--topping must be valid Unicode text"):
        check_limits(Cake(Path("tin"), Taste(), topping=("\ud800",)))


def test_options_are_enough_for_a_form() -> None:
    options = options_of(Cake)
    assert list(options)[:4] == ["pan", "sweetness", "salt", "spice"]
    assert options["salt"].group == "taste" and options["salt"].kind is int
    assert options["spice"].choices == ("no", "mild", "hot")
    assert options["oven"].flag == "--from" and options["topping"].many
    assert all(option.metadata["help"] for option in options.values())
    assert to_yaml(Cake(Path("a"), Taste())).startswith("pan: a\n\n# taste\nsweetness: 0.5\n")
