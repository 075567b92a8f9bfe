"""What the site reads out of docstrings beyond what its library does."""

from __future__ import annotations

import re
from typing import Any

import griffe

from rd_hf.options import option_fields

ROLE = re.compile(r":\w+:`~?([^`]+)`|\[`~?([^`]+)`\](?![\[(])")


class Docstrings(griffe.Extension):
    """The help of an option is the docstring of its field, and other libraries' marks of references become code."""

    def on_class_members(self, *, cls: griffe.Class, **_: Any) -> None:
        """Give fields made by ``option(default, help)`` their default and help."""
        options = {
            name: one
            for name, one in cls.attributes.items()
            if isinstance(one.value, griffe.ExprCall) and str(one.value.function) == "option"
        }
        for field in option_fields(griffe.dynamic_import(cls.path)) if options else ():
            attribute = options.get(field.name)
            if attribute is not None and isinstance(attribute.value, griffe.ExprCall):
                default = attribute.value.arguments[0]
                attribute.docstring = attribute.docstring or griffe.Docstring(field.metadata["help"], parent=attribute)
                attribute.value = None if str(default) == "MISSING" else default

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Show ``:func:`name` `` and ``[`name`]`` as ``name``."""
        if obj.docstring is not None:
            obj.docstring.value = ROLE.sub(lambda found: f"`{found[1] or found[2]}`", obj.docstring.value)
