"""Only for the package page: it has no folder beside it, so the README's relative links become addresses."""

import re
from pathlib import Path

from setuptools import setup

PROJECT = "acq-isl/acq-isl"
README = Path(__file__).with_name("README.md").read_text(encoding="utf-8")
images = re.sub(r"(!\[[^]]*\]\()(?!https?:)", rf"\1https://raw.githubusercontent.com/{PROJECT}/main/", README)
links = re.sub(r"(?<!!)(\[[^]]*\]\()(?!https?:|#)", rf"\1https://github.com/{PROJECT}/blob/main/", images)
setup(long_description=links, long_description_content_type="text/markdown")
