"""Where an insightface pack lies and whether it is whole; cheap enough to be asked while the workflow is parsed."""

from __future__ import annotations

from pathlib import Path

from likeness.errors import UserError

# What this stage needs of each released pack; age, sex and 106 landmarks are never loaded.
NEEDED_FILES = {
    "antelopev2": ("scrfd_10g_bnkps.onnx", "glintr100.onnx", "1k3d68.onnx"),
    "buffalo_l": ("det_10g.onnx", "w600k_r50.onnx", "1k3d68.onnx"),
    "buffalo_m": ("det_2.5g.onnx", "w600k_r50.onnx", "1k3d68.onnx"),
    "buffalo_s": ("det_500m.onnx", "w600k_mbf.onnx", "1k3d68.onnx"),
    "buffalo_sc": ("det_500m.onnx", "w600k_mbf.onnx"),
}
LICENCE = "The released insightface packs are licensed for non-commercial research only; a pack of your own may lie in any folder."


def packs_folder() -> Path:
    """Where insightface keeps named packs."""
    return Path("~/.insightface/models").expanduser()


def find_pack(source: str) -> Path:
    """Find a pack's folder and check that it is whole; raises UserError naming files, folder and licence. Never downloads."""
    given = Path(source).expanduser()
    is_name = given.name == source and source not in (".", "..")
    folder = given if given.is_dir() or not is_name else packs_folder() / source
    files = NEEDED_FILES.get(given.name, ())
    wanted = ", ".join(files) or "a detector and an ArcFace recogniser (.onnx)"
    if not folder.is_dir():
        raise UserError(
            f"faces.model: no insightface pack {source!r}: the folder {folder} does not exist. Put {wanted} there, or set "
            f"faces.model to a folder that has them; nothing is downloaded here. {LICENCE}"
        )
    present = {file.name: file.stat().st_size for file in folder.glob("*.onnx")}
    absent = [name for name in files if not present.get(name)] + sorted(
        name for name, size in present.items() if size == 0 and name not in files
    )
    if absent or not present:
        nested = sorted(folder.glob("*/*.onnx"))
        hint = f" Files lie one folder deeper, in {nested[0].parent}: move them up." if nested else ""
        raise UserError(
            f"faces.model: the insightface pack in the folder {folder} is incomplete: {', '.join(absent) or wanted} absent or "
            f"empty.{hint} Put them there. {LICENCE}"
        )
    return folder
