"""Small archives that stand for pinned packages."""

import dataclasses
import io
import tarfile
import zipfile

from data_pipeline.packages import catalogue as packages
from data_pipeline.stages.run import file_sha256


def wheel(folder, files, tar_prefix=""):
    """A zip of {path: text}, or with a prefix a tar.gz in which all paths begin with it."""
    path = folder / ("made.tar.gz" if tar_prefix else "made.whl")
    if not tar_prefix:
        with zipfile.ZipFile(path, "w") as archive:
            for name, text in files.items():
                archive.writestr(name, text)
        return path
    with tarfile.open(path, "w:gz") as archive:
        for name, text in files.items():
            info = tarfile.TarInfo(tar_prefix + name)
            info.size = len(text.encode())
            archive.addfile(info, io.BytesIO(text.encode()))
    return path


def catalogue(monkeypatch, downloads, name, path):
    """Makes `path`, which lies in `downloads`, the catalogue's package `name`."""
    made = packages.Package("made-up", "1.0", path.name, file_sha256(path), "CC0")
    monkeypatch.setenv("RETRO_DOWNLOADS", str(downloads))
    monkeypatch.setitem(packages.CATALOGUE, name, made)
    return dataclasses.replace(made)
