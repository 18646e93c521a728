"""Write config/subjects/NAME.yaml for a new subject and say what to do next.

The file holds only what differs from the recipe; every other key stands in config/README.md.
"""

from __future__ import annotations

import argparse
import os
import shlex
from pathlib import Path

from likeness.config.load import HOUSE, load_project
from likeness.config.subject import check_name
from likeness.errors import UserError, nearest
from likeness.program import run
from likeness.yaml_text import yaml_text

HEAD = "# Every key: config/README.md. Check with: make doctor\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--name", required=True, help="name of the subject: small letters, digits, hyphens")
    parser.add_argument("--recipe", default="character", help="character, style or edit")
    parser.add_argument("--photos", required=True, help="folder of photos, or of pairs for an edit")
    parser.add_argument("--trigger", required=True, help="the word that calls the LoRA")
    parser.add_argument("--preset", default="", help="named settings of config/presets; embedded: nothing to download")
    parser.add_argument("--folder", type=Path, default=Path(), help="the project's folder")
    args = parser.parse_args()
    missing = [f"{flag.upper()}=…" for flag in ("name", "photos", "trigger") if not getattr(args, flag)]
    if missing:
        raise UserError(
            f"give {' '.join(missing)}; for example: make new NAME=jane RECIPE=character PHOTOS=data/jane TRIGGER=j4ne"
        )
    check_shipped("recipe", args.recipe)
    if args.preset:
        check_shipped("preset", args.preset)
    try:
        check_name(args.name)
    except ValueError as error:
        raise UserError(f"--name: {error}") from None
    path = args.folder / "config" / "subjects" / f"{args.name}.yaml"
    if path.exists():
        raise UserError(f"{path} exists already; edit it, or choose another name")
    write_checked(path, args)
    print(f"wrote {path}")
    if not Path(args.folder / args.photos).is_dir():
        print(f"note: the folder {args.photos} does not exist yet")
    print(next_steps(args.folder))


def check_shipped(kind: str, name: str) -> None:
    """Raise UserError where the project ships no recipe or preset of that name."""
    shipped = sorted(path.stem for path in (HOUSE / "config" / f"{kind}s").glob("*.yaml"))
    if name not in shipped:
        raise UserError(f"no {kind} {name!r}; {nearest(name, shipped)}")


def next_steps(folder: Path) -> str:
    """The commands that follow, for the project in this folder."""
    elsewhere = folder.resolve() != HOUSE
    named = f" FOLDER={shlex.quote(str(folder))}" if elsewhere else ""
    directory = f" --directory {shlex.quote(str(folder))}" if elsewhere else ""
    return (
        f"next:  make doctor{named}   (what this machine lacks; `make models{named}` fetches what the hub has)\n"
        f"       make curate{named}   (every photo, its fate and caption)\n"
        f"then:  .venv/bin/python -m snakemake{directory} --cores all"
    )


def as_yaml(recipe: str, trigger: str, photos: str, preset: str = "") -> str:
    """A subject's file; every value is quoted where YAML would otherwise read something else."""
    values = {
        "recipe": recipe,
        **({"preset": preset} if preset else {}),
        "trigger": trigger,
        "pairs" if recipe == "edit" else "photos": photos,
        "base_model": "black-forest-labs/FLUX.2-klein-base-4B",
    }
    return HEAD + yaml_text(values)


def schema_line(path: Path) -> str:
    """The comment by which an editor finds the schema, from the file's own place wherever the project's folder lies."""
    return (
        f"# yaml-language-server: $schema={os.path.relpath(HOUSE / 'config' / 'schema.json', path.parent.resolve())}\n"
    )


def write_checked(path: Path, args: argparse.Namespace) -> None:
    """Write the file, and take it back when the configuration with it is not valid."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = schema_line(path) + as_yaml(args.recipe, args.trigger, args.photos, args.preset)
    path.write_text(text, encoding="utf-8")
    try:
        load_project(args.folder)
    except UserError:
        path.unlink()
        raise


if __name__ == "__main__":
    run(main)
