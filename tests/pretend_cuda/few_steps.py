"""Class pictures of two denoising steps: a step on the pretended device takes a second."""

import dataclasses


def main():
    from diffusekrona.bases import base

    base.BUNDLED_DRAWING = dataclasses.replace(base.BUNDLED_DRAWING, steps=2)
