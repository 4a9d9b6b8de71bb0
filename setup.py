"""What pyproject.toml cannot say: the configs and data in the wheel, and the README as a package index shows it."""

import re
from pathlib import Path

from setuptools import find_packages, setup

SOURCE = "https://github.com/weak-to-strong-transfer/wst"
#: They lie beside the package, and in the wheel inside it, where `wst.files.shipped` finds them.
SHARED = {"wst._share.lightning_configs": "lightning_configs", "wst._share.data": "data"}


def readme() -> str:
    """Return the README with absolute links: a package index has none of the files that it links to."""

    def absolute(match: re.Match[str]) -> str:
        return f"{match[1]}[{match[2]}]({SOURCE}/{'raw' if match[1] else 'blob'}/main/{match[3]})"

    text = Path(__file__).with_name("README.md").read_text(encoding="utf-8")
    return re.sub(r"(!?)\[([^\]]*)\]\((?!https?://|#)([^)\s]+)\)", absolute, text)


if __name__ == "__main__":  # setuptools runs it so; the tests import it
    setup(
        packages=[*find_packages(include=["wst*"]), *SHARED],
        package_dir=SHARED,
        include_package_data=False,  # the next lines say it all
        package_data={
            "wst": ["py.typed", "__init__.pyi", "*/__init__.pyi", "evaluation/report.html"],
            "wst._share.lightning_configs": ["**/*.yaml"],
            "wst._share.data": ["**/*.jsonl", "**/*.md"],
        },
        long_description=readme(),
        long_description_content_type="text/markdown",
        project_urls={
            "Source": SOURCE,
            "Documentation": f"{SOURCE}/tree/main/docs",
            "Changelog": f"{SOURCE}/blob/main/CHANGELOG.md",
            "Paper": "https://arxiv.org/abs/2508.16741",
        },
    )
