"""Names of the mask makers that are shipped; apart from those of other doors, since a program's code is what it names."""

MASKS = {
    "sam2": "likeness.masks.sam2_transformers:Sam2Masker",
    "sam2-package": "likeness.masks.sam2_package:Sam2PackageMasker",
    "grabcut": "likeness.masks.grabcut:GrabCutMasker",
    "folder": "likeness.masks.folder:FolderMasker",
}
"""Name → `module:Class`."""
