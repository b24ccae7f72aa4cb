"""The fixed prompts cover the world, and the scores count what was asked."""

from diffusekrona.evaluation.reader import Reading
from tools.pocket.measure import attribute_prompts, obedience, plain_prompts, spread
from tools.pocket.records import COLOURS, NOUNS, PATTERNS, PLACES


def test_plain_prompts_cover_every_class_and_place():
    prompts = plain_prompts()
    assert {asked["class"] for _, asked in prompts} == set(NOUNS)
    assert {asked["place"] for _, asked in prompts} == set(PLACES)
    assert all(asked["class"] in text for text, asked in prompts)
    assert len({text for text, _ in prompts}) == len(prompts)


def test_attribute_prompts_name_what_is_asked():
    for text, asked in attribute_prompts():
        assert asked["main_colour"] in COLOURS and asked["main_colour"] in text.split()
        assert asked.get("pattern", "plain") in PATTERNS
        assert asked.get("accessory", "") in text


def reading(noun: str, red: float) -> Reading:
    return Reading(
        {"class": {"dog": float(noun == "dog"), "cat": 0.5}}, (0, 0, 0, 0), (red, 0, 0), 0
    )


def test_scores_count_what_was_asked():
    readings = [reading("dog", 0.0), reading("cat", 1.0)]
    assert obedience(readings, [{"class": "dog"}, {"class": "dog"}]) == {"class": 0.5}
    assert spread(readings) == {"main_rgb": 1.0, "proportions": 0.0}
