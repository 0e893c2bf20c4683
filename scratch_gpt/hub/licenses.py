"""List the licenses that the Hub knows by an identifier, and check one."""

import re
from difflib import get_close_matches


# huggingface.co/docs/hub/repositories-licenses, as of autumn 2026
LICENSES = frozenset(
    """
    apache-2.0 mit openrail bigscience-openrail-m creativeml-openrail-m bigscience-bloom-rail-1.0 bigcode-openrail-m
    afl-3.0 artistic-2.0 bsl-1.0 bsd bsd-2-clause bsd-3-clause bsd-3-clause-clear c-uda cc cc0-1.0 cc-by-2.0 cc-by-2.5
    cc-by-3.0 cc-by-4.0 cc-by-sa-3.0 cc-by-sa-4.0 cc-by-nc-2.0 cc-by-nc-3.0 cc-by-nc-4.0 cc-by-nd-4.0 cc-by-nc-nd-3.0
    cc-by-nc-nd-4.0 cc-by-nc-sa-2.0 cc-by-nc-sa-3.0 cc-by-nc-sa-4.0 cdla-sharing-1.0 cdla-permissive-1.0
    cdla-permissive-2.0 wtfpl ecl-2.0 epl-1.0 epl-2.0 etalab-2.0 eupl-1.1 eupl-1.2 agpl-3.0 gfdl gpl gpl-2.0 gpl-3.0
    lgpl lgpl-2.1 lgpl-3.0 isc h-research intel-research lppl-1.3c ms-pl apple-ascl apple-amlr mpl-2.0 odc-by odbl
    openmdw-1.0 openmdw-1.1 openrail++ osl-3.0 postgresql ofl-1.1 ncsa unlicense zlib pddl lgpl-lr
    deepfloyd-if-license fair-noncommercial-research-license llama2 llama3 llama3.1 llama3.2 llama3.3 llama4
    grok2-community gemma unknown other
    """.split()
)


def check_license(license: str | None, name: str | None = None, link: str | None = None) -> None:
    """Raise a ValueError for a license that the Hub does not know.

    Args:
        license: one of the Hub's identifiers; `other` needs a name and a link.
        name: the name of another license: lower-case letters, digits, - and dots.
        link: a URL, or the LICENSE or LICENSE.md that you add to the repository.
    """
    if license is None and name is None and link is None:
        return
    if license not in LICENSES:
        near = get_close_matches(str(license).lower().replace(" ", "-"), LICENSES, n=3, cutoff=0.5)
        raise ValueError(
            f"license is {license!r}, which is not an identifier of the Hub's list"
            f"{f' (did you mean {chr(32).join(near)}?)' if near else ''}. Give one of "
            "huggingface.co/docs/hub/repositories-licenses, or other with license_name and license_link."
        )
    if license != "other":
        if name is not None or link is not None:
            raise ValueError(
                f"license_name and license_link only work with license='other', not {license}. Remove them."
            )
        return
    if name is None or re.fullmatch(r"[a-z0-9.-]+", name) is None:
        raise ValueError(f"license_name is {name!r}; it must have only lower-case letters, digits, - and dots.")
    if link is None or re.fullmatch(r"LICENSE(?:\.md)?|https://[\w.-]+(?:/[\w./%~+-]*)?", link, re.ASCII) is None:
        raise ValueError(f"license_link is {link!r}; it must be https://..., LICENSE or LICENSE.md.")


__all__ = ["LICENSES", "check_license"]
