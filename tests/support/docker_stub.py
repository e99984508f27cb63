"""A docker command without an engine, for the tests of scripts/container_check.sh.

$DOCKER_STUB is a folder with one folder per image. Its content determines what `launch.py` does in
the image: with a file ``waits`` it waits for `docker stop` and exits with 75; otherwise a run of
MODE writes MODE/report.json, or fails if there is none. `python` runs on the host, with the paths
of mounted folders replaced. A file ``refuses`` next to the images names an option that the engine
refuses. Each call is appended to calls.jsonl as one line.
"""

import json
import os
import signal
import subprocess
import sys
import time
from datetime import datetime, timezone
from pathlib import Path

HOME = Path(os.environ["DOCKER_STUB"])
CHECKOUT = Path(__file__).parents[2]
FLAGS = ("--rm", "--read-only")
REFUSED, NO_COMMAND = 125, 127


def main(argv: list[str]) -> int:
    with (HOME / "calls.jsonl").open("a") as calls:
        calls.write(json.dumps(argv) + "\n")
    if argv[0] == "version":
        print("20.10")
        return 0
    if argv[:2] == ["image", "inspect"]:
        return inspect(argv[-1], argv)
    if argv[0] == "stop":
        os.kill(int(argv[-1]), signal.SIGTERM)
        return 0
    assert argv[0] == "run", argv
    return run(argv[1:])


def inspect(image: str, argv: list[str]) -> int:
    if not (HOME / image).is_dir():
        print(f"Error: No such image: {image}", file=sys.stderr)
        return 1
    if "--format" in argv:
        members = f'"id": "sha256:{image}", "digests": [], "labels": null'
        template = argv[argv.index("--format") + 1]
        print(members if template.startswith('"id"') else f"{template[:3]} of {image}")
    return 0


def run(argv: list[str]) -> int:
    mounts, environ, at = {}, {}, 0
    while argv[at].startswith("-"):
        option, value = argv[at], argv[at + 1]
        if option == "--volume":
            source, target = value.removesuffix(":ro").split(":")
            assert Path(source).is_dir(), source
            mounts[target] = source
        elif option == "--env":
            name, _, environ[name] = value.partition("=")
        elif option == "--cidfile":
            Path(value).write_text(str(os.getpid()))
        at += 1 if option in FLAGS or "=" in option else 2
    refuses = HOME / "refuses"
    if refuses.exists() and refuses.read_text() in argv:
        print("docker: Error response from daemon: operation not permitted", file=sys.stderr)
        return REFUSED
    print("banner", file=sys.stderr)
    image, command = HOME / argv[at], argv[at + 1 :]
    if command[0] == "launch.py":
        return imitate_launch(image, command, mounts)
    on_host = [on_host_path(word, mounts) for word in command if word != "python"]
    # As in a container, of the host's environment only what the interpreter needs.
    needed = {key: os.environ[key] for key in ("PATH", "PYTHONPATH", "OMP_NUM_THREADS")}
    return subprocess.run(
        [sys.executable, *on_host],
        cwd=CHECKOUT,
        env={**needed, "HOME": str(HOME), **environ},
        check=False,
    ).returncode


def on_host_path(word: str, mounts: dict[str, str]) -> str:
    for target, source in mounts.items():
        if word == target or word.startswith(f"{target}/"):
            return source + word.removeprefix(target)
    return word


def imitate_launch(image: Path, command: list[str], mounts: dict[str, str]) -> int:
    if "--explain" in command:
        if "nothing" in command:
            print("error: there is no model 'nothing'; --list models shows all")
        return 2 if "nothing" in command else 0
    mode = command[command.index("--mode") + 1]
    if (image / "waits").exists():
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(75))
        print("training", flush=True)
        time.sleep(60)
    if not (image / mode).is_dir():
        print(f"this image has no results of {mode}")
        return 3
    workspace = Path(on_host_path(command[-1], mounts))
    workspace.mkdir()
    report = json.loads((image / mode / "report.json").read_text())
    report["environment"]["ended_at"] = datetime.now(timezone.utc).isoformat()
    (workspace / "report.json").write_text(json.dumps(report))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
