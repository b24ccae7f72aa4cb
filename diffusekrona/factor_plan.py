"""The former name of `diffusekrona.plan`, so that `-m diffusekrona.factor_plan` still works."""

from .common.errors import exit_on_user_error
from .plan import main

if __name__ == "__main__":
    exit_on_user_error(main)
