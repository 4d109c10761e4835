"""A launcher of the compiler that copies an object which the build in use has compiled from the same text.

CMake puts it before each command of the compiler, as it would ccache. An object is the same where every file that it
was made from is the same in the tree that is built now, byte for byte, and so is the command: but for the tree's place,
macros of ours that none of those files names, and folders that none of them came from. All else goes to the compiler.

So for links: the objects that each build has are optimized together but once, and kept by what lies in them.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

LISTED = "LISTED_OBJECTS"  # the environment variable that names the file in which the objects are listed


class Object(NamedTuple):
    """What the build in use has made: a file, the command, and all files that the compiler read."""

    path: str
    command: list[str]
    read: list[str]


def objects(build: Path, ninja: str) -> Iterator[Object]:
    """The objects of a build by Ninja."""

    def ask(tool: str) -> str:
        return subprocess.run([ninja, "-C", build, "-t", tool], capture_output=True, text=True, check=True).stdout

    read = {}
    for block in ask("deps").split("\n\n"):
        head, *files = block.splitlines() or [""]
        if head.endswith("(VALID)"):
            read[head.partition(": ")[0]] = [file.strip() for file in files]
    for line in ask("commands").splitlines():
        command = shlex.split(line)
        name = command[command.index("-o") + 1] if "-MF" in command else ""
        if name in read:
            yield Object(str(build / name), command, read[name])


def environment(build: Path, root: Path, ninja: str, file: Path) -> dict[str, str]:
    """Write down in ``file`` what ``build`` has made of ``root``, and tell the variables with which to copy it."""
    listed = list(objects(build, ninja)) if (build / "build.ninja").exists() else []
    file.write_text(json.dumps({"root": str(root), "objects": listed}))
    launcher = f"{sys.executable};-S;{__file__}"
    return {"CMAKE_CXX_COMPILER_LAUNCHER": launcher, "CMAKE_CXX_LINKER_LAUNCHER": launcher, LISTED: str(file)}


def meaning(command: list[str], root: str, text: str) -> tuple[list[str], list[str]]:
    """The words of a command that matter to an object made from ``text``; the folders of system headers apart."""
    words, folders = [], []
    rest = iter(command)
    for word in rest:
        if word in ("-MT", "-MF", "-o"):
            next(rest)
        elif word == "-isystem":
            folders.append(next(rest))
        elif not (word.startswith("-DFUSEDOPTIM_") and word[2:].partition("=")[0] not in text):
            words.append(word.replace(root, ""))
    return words, folders


def is_same(known: Object, was: str, command: list[str], now: str) -> bool:
    """Whether ``command`` would make the object ``known``, which was made in the tree ``was``, in the tree ``now``."""
    made = os.stat(known.path).st_mtime
    own = [file.removeprefix(was) for file in known.read if file.startswith(f"{was}/csrc/")]
    texts = [Path(was + name).read_text() for name in own]
    if texts != [Path(now + name).read_text() for name in own] or any(os.stat(f).st_mtime > made for f in known.read):
        return False
    words, folders = meaning(known.command, was, "".join(texts))
    # Without a folder that nothing came from, all files are found where they were.
    needed = [folder for folder in folders if any(file.startswith(f"{folder}/") for file in known.read)]
    now_words, now_folders = meaning(command, now, "".join(texts))
    return words == now_words and now_folders in (folders, needed)


def reuse(command: list[str], listed: dict[str, Any]) -> str | None:
    """Put the object in its place, with the list of what it was made from, and return the path of the first of it."""
    was, source = listed["root"], command[-1]
    for known in (Object(*entry) for entry in listed["objects"]):
        name = known.command[-1].removeprefix(was)
        now = source.removesuffix(name)
        if now != source and is_same(known, was, command, now):
            target = command[command.index("-o") + 1]
            shutil.copyfile(known.path, target)
            read = [now + file.removeprefix(was) if file.startswith(f"{was}/") else file for file in known.read]
            depfile = " \\\n  ".join(file.replace(" ", "\\ ") for file in read)
            Path(command[command.index("-MF") + 1]).write_text(f"{target}: {depfile}\n")
            return known.path
    return None


if __name__ == "__main__":
    found, words = None, sys.argv[1:]
    if "-shared" in words:
        sys.path.append(str(Path(__file__).parents[1] / "cuda_on_cpu"))
        import building

        words = building.optimized_once(words, Path.cwd())
    if "-MF" in words:
        try:
            found = reuse(words, json.loads(Path(os.environ[LISTED]).read_text()))
        except FileNotFoundError:  # which the compiler tells better
            found = None
    if found is not None:
        print(f"copied {found}")
    sys.exit(0 if found is not None else subprocess.run(words).returncode)
