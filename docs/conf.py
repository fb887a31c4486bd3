"""Settings of Sphinx, which makes the documentation's site: ``make docs``.

The source directory is the repository itself, so that README.md, CONTRIBUTING.md and the pages in docs/ link to each other by the
same relative paths on a code host and in the site.
"""

from __future__ import annotations

import inspect
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from docutils import nodes
from docutils.statemachine import StringList
from sphinx.ext.napoleon.docstring import GoogleDocstring
from sphinx.util.docutils import SphinxDirective

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from appliance.version import __version__
from tests.helpers.public_names import described, public_names

if TYPE_CHECKING:
    from sphinx.application import Sphinx

project = "Secure PVAccess appliance"
author = "the authors of the Secure PVAccess appliance"
project_copyright = author
version = release = __version__

# Napoleon would take the first words of an attribute's docstring for its type if a colon follows somewhere: ours are sentences.
GoogleDocstring._parse_attribute_docstring = lambda self: self._consume_to_end()

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
    "sphinx_design",
]
root_doc = "docs/index"
include_patterns = [
    "docs/**",
    "examples/README.md",
    "inventory.example/README.md",
    "README.md",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "SECURITY.md",
    "LICENSE",
]
nitpicky = True
suppress_warnings = ["ref.python"]
"""``type`` in an annotation is Python's own, and not one of the attributes of that name."""
nitpick_ignore_regex = [
    # No inventory of another site is fetched: the documentation is made without a network.
    (
        r"py:.*",
        r"(asyncio|collections|contextlib|concurrent|datetime|enum|logging|numpy|os|pathlib|ssl|types|typing)\..*",
    ),
    # What only experts pass, and what stands behind a public class: internal, and said in words.
    (
        r"py:class",
        r"appliance\.(client\.(end|channel|link)|pva|server\.(access|admission|channel|quota|served_channel|source)|tls|transport)\..*",
    ),
    (r"py:class", r"appliance\.config\.(address\.Endpoint|pva\._C|section\.Section|tls_options\.TLSOptions)"),
    (r"py:class", r"appliance\.api\._For(Context|Server)"),
    (r"py:class", r"appliance\.[a-z.]+\._Item"),
    (r"py:(class|exc)", r"appliance\.p4p\..*|Version|Full|Empty"),
    (r"any", r"(asyncio|logging|multiprocessing)(\..*)?"),
    (r"py:class", r"(AdmissionTimings|Limits|PeerGate|Quota|TLSContext|Timings)"),
    (
        r"py:class",
        r"(bool|bytes|Callable|dict|float|frozenset|int|list|None|object|optional|Self|set|str|tuple|type)",
    ),
    (
        r"py:(class|exc)",
        r"(Exception|BaseException|KeyError|StopAsyncIteration|StopIteration|TimeoutError|TypeError|ValueError|RuntimeError|AttributeError|OSError)",
    ),
]

myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 4
"""Headings get the same anchors as on a code host, down to this rank."""

autodoc_preserve_defaults = True
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_class_signature = "mixed"
autodoc_inherit_docstrings = True
napoleon_numpy_docstring = False
napoleon_use_rtype = False
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 90
add_module_names = False
default_role = "any"
"""What stands in single backquotes in a docstring is a name of this documentation."""

html_theme = "pydata_sphinx_theme"
html_title = "Secure PVAccess"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_extra_path = ["_root"]
html_show_sourcelink = False
html_copy_source = False
html_theme_options = {
    "logo": {"text": "Secure PVAccess"},
    "navbar_end": ["theme-switcher"],
    "navbar_align": "left",
    "header_links_before_dropdown": 6,
    "show_prev_next": False,
    "secondary_sidebar_items": ["page-toc"],
    "footer_start": ["copyright"],
    "footer_end": [],
    "back_to_top_button": False,
    "pygments_light_style": "a11y-high-contrast-light",
    "pygments_dark_style": "a11y-high-contrast-dark",
    "show_nav_level": 1,
    "show_toc_level": 2,
}
html_sidebars = {"docs/index": []}
copybutton_prompt_text = r">>> |\.\.\. |\$ |[a-z]+\$ "
copybutton_prompt_is_regexp = True


class PublicModule(SphinxDirective):
    """Describes the public names of a module, with the members that docs/reference/public-names.md lists.

    ``.. public:: appliance.client`` takes the module's page from its docstrings.
    """

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        """Return the descriptions."""
        module = self.arguments[0]
        is_p4p = module.startswith("appliance.p4p")
        self.env.note_dependency(str(ROOT / "docs/reference/public-names.md"))
        lines = [f".. py:module:: {module}", ""]
        for name in described(module):
            thing = name.thing
            if inspect.isclass(thing):
                kind = "exception" if issubclass(thing, BaseException) else "class"
                lines.append(f".. auto{kind}:: {name.path}")
                members = ", ".join(name.members)
                lines += [f"   :members: {members}"] if members or is_p4p else []
                lines += ["   :show-inheritance:"] if is_p4p and "p4p" in thing.__base__.__module__ else []
            elif callable(thing):
                lines.append(f".. autofunction:: {name.path}")
            else:
                if name.name.startswith("logLevel"):
                    what = f"A level of messages, as PVXS counts: {thing}. `set_debug` takes the levels of ``logging``"
                elif is_p4p:
                    what = f"The value is ``{thing!r}``"
                else:
                    what = (name.what[0].upper() + name.what[1:]).replace("`", "``")
                lines += [
                    f".. py:data:: {name.name}",
                    f"   :type: {type(thing).__qualname__}",
                    "",
                    f"   {what}.",
                ]
            lines.append("")
        box = nodes.container()
        self.state.nested_parse(StringList(lines, source=f"public names of {module}"), 0, box)
        return box.children


_P4P_ERROR = re.compile(r"^( +)(Cancelled|Disconnected|Finished|RemoteError): ")
_QUOTED = re.compile(r"(?<![`:])`([^`]+)`(?!`)")
_PATHS = {name.name: f"{name.home}.{name.name}" for name in reversed(public_names())}


def link(_app: Sphinx, _what: str, path: str, _thing: object, _options: object, lines: list[str]) -> None:
    """Say which name is meant where our own API and p4p's have the same one.

    What stands in backquotes alone is a name of the API that the docstring is of. In p4p's API only full paths become links,
    and errors are p4p's.
    """
    is_p4p = path.startswith("appliance.p4p.")

    def full(quoted: re.Match[str]) -> str:
        name = quoted[1]
        if name.startswith("appliance."):
            return quoted[0]
        if is_p4p:
            return f"``{name}``"
        return f":py:obj:`~{_PATHS[name]}`" if name in _PATHS else quoted[0]

    for number, line in enumerate(lines):
        named = _P4P_ERROR.sub(r"\1appliance.p4p.client.raw.\2: ", line) if is_p4p else line
        lines[number] = _QUOTED.sub(full, named)


def setup(app: Sphinx) -> None:
    """Add the directive, and what is done to docstrings before they are read (napoleon's priority is 500)."""
    app.add_directive("public", PublicModule)
    app.connect("autodoc-process-docstring", link, priority=400)
