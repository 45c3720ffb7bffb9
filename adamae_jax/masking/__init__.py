"""Which tokens are seen. Each strategy is a module with a class `Strategy`.

The modules of this package are known by their last name, others by their whole path.
"""

import dataclasses
import importlib
import pkgutil
from collections.abc import Mapping
from typing import Any

from adamae_jax.errors import UserError
from adamae_jax.masking.base import MaskingStrategy, MaskInputs, TokenMask

__all__ = ["MaskInputs", "MaskingStrategy", "TokenMask", "create", "names", "option_defaults"]


# What strategies share.
_NO_STRATEGIES = ("apportionment", "base", "cells", "decoding", "distribution", "frozen_vit")


def names() -> list[str]:
    """The strategies of this package."""
    found = (info.name for info in pkgutil.iter_modules(__path__))
    return sorted(name for name in found if name not in _NO_STRATEGIES)


def strategy_class(name: str) -> type[MaskingStrategy]:
    """Returns the class of a strategy.

    Args:
      name: one of `names`, or the path of a module elsewhere, such as ``mypackage.block``.

    Raises:
      UserError: where there is no such module, or it has no class `Strategy`.
    """
    if name in names():
        return importlib.import_module(f"{__name__}.{name}").Strategy
    if "." not in name:
        raise UserError(
            f"masking.name {name!r} is unknown: use one of {', '.join(names())}, or the path of a "
            "module of your own, such as mypackage.block"
        )
    try:
        module = importlib.import_module(name)
    except ImportError as error:
        raise UserError(
            f"masking.name {name!r} cannot be imported ({error}): start the job where "
            f"`import {name}` works, or set PYTHONPATH"
        ) from error
    found = getattr(module, "Strategy", None)
    if not (isinstance(found, type) and issubclass(found, MaskingStrategy)):
        raise UserError(
            f"masking.name {name!r} is a module without a class Strategy that is a "
            "MaskingStrategy: see docs/masking.md"
        )
    return found


def option_defaults(name: str) -> dict[str, Any]:
    """A strategy's own options and their defaults."""
    fields = dataclasses.fields(strategy_class(name))
    return {field.name: field.default for field in fields if field.name != "mask_ratio"}


def create(name: str, mask_ratio: float, options: Mapping[str, Any]) -> MaskingStrategy:
    """Builds a strategy from config values.

    Raises:
      UserError: for an unknown strategy or option, or a mask ratio outside (0, 1).
    """
    known = option_defaults(name)
    for option in options:
        if option not in known:
            raise UserError(
                f"masking.options.{option} is unknown to masking {name!r}, which takes "
                f"{', '.join(known) or 'no options'}: choose the masking in the config file, with "
                "masking_config(), so that name and options go together"
            )
    return strategy_class(name)(mask_ratio=mask_ratio, **options)
